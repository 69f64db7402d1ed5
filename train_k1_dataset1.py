"""K-1, stage 1: learn dataset 1, updating 51% of the parameters at each step.

It starts from fresh weights, or from the pretrained model of --init_from. At the
end the model writes text, which later stages rehearse.
"""

from k1 import DataLoader, Learner, command, configure_torch, parse_training_flags, stage_outputs


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="k1")
    [output] = stage_outputs(flags, stages=[1])
    arguments = flags.resolve(stage=1)
    configure_torch(arguments.threads)

    data_loader = DataLoader(dataset_name="wikitext", arguments=arguments)
    learner = Learner.new(flags.init_from, arguments, data_loader.text("train"))
    output.learn(learner, data_loader.tokenize(learner.tokenizer), arguments)


if __name__ == "__main__":
    main()
