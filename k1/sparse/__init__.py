"""K-1 itself: which parameters change, in which basis, and what holds them."""
