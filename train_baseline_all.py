"""Baseline: learn the three datasets one after another, updating every parameter at each step.

With --rehearsal 0.25 its later stages have the rehearsal of K-1; they resume from the first stage of the run without.
"""

from k1 import (
    DataLoader,
    EventLog,
    ResumeFile,
    begin_rehearsal,
    command,
    configure_torch,
    evaluate,
    initial_model,
    is_shared,
    load_finished_stage,
    output_path,
    parse_training_flags,
    predicted_forgetting,
    print_evaluation,
    require_distinct,
    save_checkpoint,
    stage_checkpoint,
    train,
    write_rehearsal,
)


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="baseline")
    outputs = [output_path(flags, stage) for stage in (1, 2, 3)]
    resume_file = ResumeFile(outputs[-1], flags.save_steps, flags.overwrite)
    event_logs = [EventLog(flags, output) for output in outputs]
    arguments = flags.resolve(stage=1)
    configure_torch(arguments.threads)

    data_loaders = [
        DataLoader(dataset_name=dataset_name, arguments=arguments)
        for dataset_name in flags.dataset_names or ["wikitext", "code", "science"]
    ]
    require_distinct([data_loader.name for data_loader in data_loaders])
    initial = initial_model(flags.init_from, arguments, data_loaders[0].text("train"))
    tokenizer, model = initial.tokenizer, initial.build(arguments.device)

    checkpoint, written, learned = None, [], []
    for stage, (data_loader, output, event_log) in enumerate(zip(data_loaders, outputs, event_logs), start=1):
        arguments = flags.resolve(stage, previous=checkpoint.arguments if checkpoint else None)
        dataset = data_loader.tokenize(tokenizer)
        learned.append(dataset)
        if stage < resume_file.stage or is_shared(flags.arm, output):
            checkpoint, model = load_finished_stage(output, dataset, arguments, flags.arm, initial.start)
            written = checkpoint.written
            continue

        untrained = evaluate(initial.build(arguments.device), [dataset], arguments, splits=("test",))
        before = untrained if stage == 1 else evaluate(model, [dataset], arguments, splits=("test",))
        rehearsal = begin_rehearsal(model, written, tokenizer, arguments)
        history = train(model, dataset, arguments, rehearsal, resume_file, event_log)
        predicted = predicted_forgetting(model, rehearsal)
        if stage < len(outputs):
            written = write_rehearsal(model, dataset, tokenizer, arguments, written)
        after = evaluate(model, learned, arguments)

        checkpoint = stage_checkpoint(
            model, tokenizer, dataset, arguments, previous=checkpoint, start=initial.start,
            untrained=untrained, before=before, after=after, history=history, written=written, predicted=predicted,
        )  # fmt: skip
        save_checkpoint(output, checkpoint)
        event_log.add_evaluations(before, after, arguments.max_steps)
        print_evaluation(checkpoint)
    resume_file.remove()


if __name__ == "__main__":
    main()
