"""K-1, stage 1: learn dataset 1, updating 51% of the parameters at each step.

It starts from fresh weights, or from the pretrained model of --init_from. At the
end the model writes text, which later stages rehearse.
"""

from k1 import (
    DataLoader,
    EventLog,
    ResumeFile,
    command,
    configure_torch,
    evaluate,
    initial_model,
    output_path,
    parse_training_flags,
    print_evaluation,
    save_checkpoint,
    stage_checkpoint,
    train,
    write_rehearsal,
)


@command
def main() -> None:
    flags = parse_training_flags(__doc__, method="k1")
    output = output_path(flags, stage=1)
    resume_file = ResumeFile(output, flags.save_steps, flags.overwrite)
    event_log = EventLog(flags, output)
    arguments = flags.resolve(stage=1)
    configure_torch(arguments.threads)

    data_loader = DataLoader(dataset_name="wikitext", arguments=arguments)
    initial = initial_model(flags.init_from, arguments, data_loader.text("train"))
    tokenizer, model = initial.tokenizer, initial.build(arguments.device)
    dataset = data_loader.tokenize(tokenizer)

    untrained = evaluate(model, [dataset], arguments, splits=("test",))
    history = train(model, dataset, arguments, resume_file=resume_file, event_log=event_log)
    written = write_rehearsal(model, dataset, tokenizer, arguments)
    after = evaluate(model, [dataset], arguments)

    checkpoint = stage_checkpoint(
        model, tokenizer, dataset, arguments,
        untrained=untrained, before=untrained, after=after, history=history, written=written, start=initial.start,
    )  # fmt: skip
    save_checkpoint(output, checkpoint)
    event_log.add_evaluations(untrained, after, arguments.max_steps)
    resume_file.remove()
    print_evaluation(checkpoint)


if __name__ == "__main__":
    main()
