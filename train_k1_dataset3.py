"""K-1, stage 3: load models/k1_dataset2.pt and learn dataset 3, updating 51% of the parameters.

A part of every batch is text that the model itself wrote; on it the model is held
to what it predicted before. With --rehearsal 0 the 51% are alone.
"""

from k1 import DataLoader, Learner, command, configure_torch, load_checkpoint, parse_training_flags, stage_outputs


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="k1")
    [output] = stage_outputs(flags, stages=[3])
    previous = load_checkpoint(flags.checkpoint(stage=2), "k1", stage=2)
    arguments = flags.resolve(stage=3, previous=previous.arguments)
    configure_torch(arguments.threads)

    data_loader = DataLoader(dataset_name="science", arguments=arguments)
    learner = Learner.of(previous, arguments)
    output.learn(learner, data_loader.tokenize(learner.tokenizer), arguments)


if __name__ == "__main__":
    main()
