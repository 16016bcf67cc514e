"""A run from beginning to end: made ready, trained, shown, and uploaded where that is wanted."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tinkertools import console
from tinkertools.config import AnswerDefaults, ServerSettings, TrainConfig
from tinkertools.engines import open_service
from tinkertools.errors import EngineError, FileError, Interrupted, TinkertoolsError
from tinkertools.files import AGAIN
from tinkertools.planning import Plan, resolve
from tinkertools.resuming import refuse_shorter
from tinkertools.stopping import stop_on_interrupt
from tinkertools.train.starting import begin, go_on, make_room, material_of_run, steps_in_all, warn_of_warmup
from tinkertools.train.summary import show_finished, show_summary

if TYPE_CHECKING:
    from tinkertools.engines import SamplingClient
    from tinkertools.methods import Material
    from tinkertools.runs.directory import RunDirectory

# Prompts that are answered while training.
PROMPTS_ANSWERED = 3


def run_plan(plan: Plan) -> None:
    """Train, if there is anything left to train, and upload the result where that is wanted."""
    from tinkertools.publishing import check_ready
    from tinkertools.tracking import check_trackers

    config = plan.config
    check_trackers(config.trackers)
    if config.upload:
        check_ready(config.hf_repo_id)
    if plan.run.finished and not plan.replaces:
        with plan.run.lock():
            show_finished(plan)
    else:
        with resumable(plan):
            train(plan)
    if config.upload:
        upload(plan)


@contextmanager
def resumable(plan: Plan) -> Iterator[None]:
    """Errors within the block also tell how the run goes on, once there is one."""
    run = plan.run
    before = run.exists and plan.metadata is None  # one that is to be replaced
    try:
        yield
    except (EngineError, FileError) as error:
        if not run.exists or before:
            raise
        goes_on = f"go on with step {run.next_step()}: tt train --resume {run.path}"
        first = error.hint.removesuffix(AGAIN) if error.hint else None
        raise type(error)(error.message, hint=f"{first}; then {goes_on}" if first else goes_on) from error


def train(plan: Plan) -> None:
    """Everything from data to summary, in order."""
    from tinkertools.loop import Loop
    from tinkertools.methods import Bench
    from tinkertools.runs.log import TrainingLog
    from tinkertools.runs.plots import write_plots
    from tinkertools.space import disk_may_fill, needs_of
    from tinkertools.tracking import tracking

    config, run = plan.config, plan.run
    opened = open_service(
        plan.choice, run.engine_store, console.waiting, timeout=config.timeout, download=config.download
    )
    with ExitStack() as held, opened as service:
        saved = None
        if plan.metadata is not None:
            held.enter_context(run.lock())
            if run.finished:  # by another process, since this one looked
                show_finished(plan)
                return
            run.remove_leftovers()
            saved = run.recover_state(console.warn)
        material, metadata = material_of_run(plan, service, first=saved is None)
        config = resolve(config, console.say)
        total_steps = steps_in_all(config, material.batches)
        first_step = saved.next_step if saved else 1
        if plan.started is not None:
            refuse_shorter(plan.given.values, total_steps, steps_in_all(plan.started, material.batches), first_step - 1)
        warn_of_warmup(config, total_steps)
        needs = needs_of(config, total_steps)
        make_room(run, config, needs)
        client, config = begin(plan, config, service, saved, metadata)
        if plan.metadata is None:
            held.enter_context(run.lock())
        else:
            go_on(plan, config, metadata, material.batches, first_step)
        held.enter_context(disk_may_fill(run, needs))
        method = material.begin(Bench(client, service, config, plan.choice, run, saved, console.voice(), held))
        stop = held.enter_context(stop_on_interrupt(console.say))
        tracked = held.enter_context(
            tracking(
                config.trackers, run, project=config.wandb_project, name=config.wandb_name, config=config.to_json(),
                next_step=first_step, notify=console.warn,
            )
        )  # fmt: skip
        with TrainingLog.reopen(run.log, first_step) as log:
            loop = Loop(
                client, service, method, config, run, log, console.progress, console.warn,
                tracking=tracked, answer=answering(config, run, material, first_step),
            )  # fmt: skip
            ended = loop.run(first_step, total_steps, stop)
        if ended.interrupted:
            run.remove_leftovers()
            raise stopped_after(ended.step, total_steps, run, stop.by or signal.SIGINT)
        # Before the final weights, whose presence says that nothing is missing.
        write_plots(run.plots, log.steps, log.evals, config.method)
        loop.finish(ended.step)
    show_summary(run, log, total_steps, config.method)
    if config.engine == "tinker":
        console.show_server_paths(run.server_paths(), downloaded=config.download)


def stopped_after(step: int, total_steps: int, run: "RunDirectory", by: signal.Signals) -> Interrupted:
    """What to say when a signal has waited for a step to finish."""
    return Interrupted(
        f"stopped after step {step} of {total_steps}; the state is saved",
        hint=f"go on with it: tt train --resume {run.path}",
        by=by,
    )


def answering(
    config: TrainConfig, run: "RunDirectory", material: "Material", first_step: int
) -> "Callable[[int, SamplingClient], None] | None":
    """What has a few prompts answered and keeps the answers: of the held-out data, else the prompts that ship."""
    if not config.sample_every:
        return None
    from tinkertools.answers import Settings, ask
    from tinkertools.prompts import default_prompts, load_prompts
    from tinkertools.runs.samples import Samples

    prompts = (material.asked or load_prompts(default_prompts(config.base_model)))[:PROMPTS_ANSWERED]
    settings = Settings(AnswerDefaults.max_tokens, temperature=0.0, seed=config.seed)
    samples = Samples.reopen(run.samples, first_step)

    def answer(step: int, sampler: "SamplingClient") -> None:
        answers = ask(sampler, material.renderer, prompts, settings, lambda done, note="": None)
        pairs = zip(prompts, answers, strict=True)
        samples.add(step, [(prompt.messages, found.text, found.error) for prompt, found in pairs])

    return answer


def upload(plan: Plan) -> None:
    """Publish the result of a finished run.

    Raises:
        TinkertoolsError: it was not sent; the run is finished all the same, and the hint says how to go on.
    """
    from tinkertools.publishing import options_of_run, publish

    config, run = plan.config, plan.run
    assert config.hf_repo_id is not None
    options = options_of_run(run, config.hf_repo_id, merged=config.merge, folder=config.download_dir)
    server = ServerSettings.from_environment(plan.choice.base_url)
    try:
        console.say(publish(options, server, config.timeout, console.voice(), private=config.hf_private))
    except TinkertoolsError as error:
        again = f"tt upload --run {run.path} --hf-repo-id {config.hf_repo_id}"
        again += " --merge" * config.merge + " --hf-public" * (not config.hf_private)
        again += f" --download-dir {config.download_dir}" if config.download_dir else ""
        first = (error.hint or "").removesuffix(AGAIN).rstrip("; ,")
        raise type(error)(
            f"the run is finished, but was not uploaded: {error.message}",
            hint=f"{first}; then {again}" if first else again,
        ) from error
