"""K-1, stage 2: load models/k1_dataset1.pt and learn dataset 2, updating 51% of the parameters.

A part of every batch is text that the model itself wrote; on it the model is held
to what it predicted before. With --rehearsal 0 the 51% are alone.
"""

from k1 import (
    DataLoader,
    EventLog,
    ResumeFile,
    begin_rehearsal,
    command,
    configure_torch,
    evaluate,
    load_checkpoint,
    load_datasets,
    load_tokenizer,
    output_path,
    parse_training_flags,
    predicted_forgetting,
    print_evaluation,
    require_distinct,
    restore_initial_model,
    restore_model,
    save_checkpoint,
    stage_checkpoint,
    train,
    write_rehearsal,
)


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="k1")
    output = output_path(flags, stage=2)
    resume_file = ResumeFile(output, flags.save_steps, flags.overwrite)
    event_log = EventLog(flags, output)
    previous = load_checkpoint(flags.checkpoint(stage=1), "k1", stage=1)
    arguments = flags.resolve(stage=2, previous=previous.arguments)
    configure_torch(arguments.threads)

    data_loader = DataLoader(dataset_name="code", arguments=arguments)
    require_distinct([*(record["name"] for record in previous.datasets), data_loader.name])
    tokenizer = load_tokenizer(previous.tokenizer)
    dataset = data_loader.tokenize(tokenizer)
    learned = load_datasets(previous.datasets, tokenizer, arguments)
    model = restore_model(previous, arguments.device)

    untrained = evaluate(restore_initial_model(previous, arguments.device), [dataset], arguments, splits=("test",))
    before = evaluate(model, [dataset], arguments, splits=("test",))
    rehearsal = begin_rehearsal(model, previous.written, tokenizer, arguments)
    history = train(model, dataset, arguments, rehearsal, resume_file, event_log)
    predicted = predicted_forgetting(model, rehearsal)
    written = write_rehearsal(model, dataset, tokenizer, arguments, previous.written)
    after = evaluate(model, [*learned, dataset], arguments)

    checkpoint = stage_checkpoint(
        model, tokenizer, dataset, arguments, previous=previous,
        untrained=untrained, before=before, after=after, history=history, written=written, predicted=predicted,
    )  # fmt: skip
    save_checkpoint(output, checkpoint)
    event_log.add_evaluations(before, after, arguments.max_steps)
    resume_file.remove()
    print_evaluation(checkpoint)


if __name__ == "__main__":
    main()
