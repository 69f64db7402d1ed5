"""Baseline: learn the three datasets one after another, updating every parameter at each step.

With --rehearsal 0.25 its later stages have the rehearsal of K-1; they continue the first stage of the run without.
"""

from k1 import DataLoader, Learner, command, configure_torch, parse_training_flags, require_distinct, stage_outputs


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="baseline")
    names = flags.dataset_names or ["wikitext", "code", "science"]
    stages = range(1, len(names) + 1)
    outputs = stage_outputs(flags, stages)
    arguments = flags.resolve(stage=1)
    configure_torch(arguments.threads)

    data_loaders = [DataLoader(dataset_name=name, arguments=arguments) for name in names]
    require_distinct([data_loader.name for data_loader in data_loaders])
    learner = Learner.new(flags.init_from, arguments, data_loaders[0].text("train"))
    for stage, data_loader, output in zip(stages, data_loaders, outputs, strict=True):
        arguments = flags.resolve(stage, previous=learner.checkpoint and learner.checkpoint.arguments)
        dataset = data_loader.tokenize(learner.tokenizer)
        output.learn(learner, dataset, arguments)


if __name__ == "__main__":
    main()
