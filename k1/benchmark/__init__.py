"""How fast and how large training is, beside other ways to train the same model: python3 -m k1.benchmark."""
