"""`embodied finetune`: train the planner's own parts on recorded episodes, in stages.

`align` trains the Embodied-former: places and verdicts, with a policy where there are episodes to
imitate, and with answers to questions where there are none. On records it trains the mapping as
well: captions, places and answers, spoken by the language model as it is.
`words` trains the adapter to tell from the words alone which task is meant, or to refuse.
`plan` trains mapping and adapter to say plans, verdicts and answers as well; the former is frozen,
or learns along with `--train_former`.
`heads` and `places` train small heads beside the language model: two that judge clips and weigh
answers with it, one that says where things are.

Records of EgoCOT (`--records`) add questions and captions to `words`, which then trains the mapping
too, and to `plan` their plans and verdicts as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import policies
from embodied.cli.assemble import save_policy
from embodied.cli.records import check_min_score, chosen_records, layouts_of
from embodied.cli.shares import align_shares
from embodied.cli.splits import LEFT_OUT, tasks_left_out, without
from embodied.cli.stages import trained_on
from embodied.cli.start import StartOptions, planner_to_train
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes, seen_notes
from embodied.egocot.dataset import Recorded, load_recorded
from embodied.egocot.former_batches import AlignmentSampler
from embodied.egocot.halting import with_halts
from embodied.egocot.record_conversations import AlignmentTurns, shown_by
from embodied.egocot.record_features import SeenRecord
from embodied.episodes import DatasetReader
from embodied.model.alignment import Alignment
from embodied.model.features import FeatureCache
from embodied.model.planner import Planner
from embodied.processes import Processes
from embodied.train import LoopOptions
from embodied.training_state import seed_all
from sims import language, scenes

AGENTS: dict[str, dict[str, Any]] = {
    "metaworld": {"execute": 4, "retreat": (0.0, 0.0, 0.8, -1.0), "retreat_steps": 10},
    "kitchen": {
        "execute": 4,
        "retreat": (0.0, -0.7, *[0.0] * 5, 1.0, 1.0),
        "retreat_steps": 8,
        "monitor": {
            "stall_steps": 16,
            "stall_range": 0.03,
            "patience_steps": 40,
            "tries_per_task": 2,
            "sure_above": 0.95,
        },
    },
}
"""How the agent acts with a policy trained here, by simulator. To let go is to open the gripper;
Meta-World's hand rises as well, and the Panda leans back from its shoulder."""


_FEW_SHOT_HALTS = 4
"""Failures made of each demonstration: without one a judge comes to call everything done."""

_STAGES: dict[str, Literal["align", "words", "plan"]] = {"1": "align", "2": "words", "3": "plan"}


@dataclass(frozen=True)
class FinetuneOptions(StartOptions, LoopOptions):
    """What to train, on what.

    Args:
        stage: align, words, plan, heads or places; 1, 2 and 3 are the first three.
        dataset: data sets to imitate and to look at, comma-separated.
        look_at: more data sets, for plans and verdicts only, comma-separated.
        records: folders of EgoCOT records, comma-separated; see data/egocot/README.md.
        records_split: which of their splits to train on, comma-separated.
        min_score: the least similarity of clip and words with which a record counts as good; any
            for our own records and 0.2 for the official ones when not given.
        leave_out: tasks, or sets like mw5 and fk5, of which no episode, record or sentence is
            trained on, comma-separated; kept in the checkpoint.
        output_dir: where the log, the state and the result go.
        few_shot: in stage plan, to learn new tasks: so many successes of each of the data sets'
            tasks, in the episodes' own words alone; all episodes, and all that people say, when 0.
        halts: failures made of each success, in which the robot stops half way, for verdicts and
            questions; 4 with few_shot, else none, when not given.
        train_former: in stage plan, whether the Embodied-former learns along: to find what a
            question is about, for one. A policy that was tuned with this former needs its own copy.
        horizon: actions in a chunk.
        batch_size: samples a step, of all uses together, those of records included; the stage's
            own number when 0.
        mix: in stage plan, so many of them are tasks, plans, verdicts and answers, against each
            other: "6,4,8,30" is mostly questions. Tasks are requests for our scenes; the other
            three are of the episodes or, when there are none, of the records. With both, three
            more numbers are plans, verdicts and answers of the records, which have 6,4,6 otherwise.
            The stage's own numbers when empty.
        judge_in: in stage heads, the simulators where the verdict head is heard, comma-separated;
            all that it learns from when empty. Elsewhere the language model judges alone.
        features_dir: where frozen features are cached.
        save_every: steps between saved states; 0 to save at the end only.
        gradient_checkpointing: compute the language model's layers again in the backward pass:
            less memory, more time.
        threads: CPU threads; torch's own choice when 0.
    """

    stage: Literal["align", "words", "plan", "heads", "places", "1", "2", "3"]
    output_dir: Path
    _: KW_ONLY
    dataset: str = ""
    look_at: str = ""
    records: str = ""
    records_split: str = "train"
    min_score: float | None = None
    leave_out: str = ""
    few_shot: int = 0
    halts: int | None = None
    train_former: bool = False
    horizon: int = 8
    batch_size: int = 0
    mix: str = ""
    judge_in: str = ""
    features_dir: Path = Path("outputs/features")
    save_every: int = 100
    gradient_checkpointing: bool = False
    threads: int = 0

    @property
    def n_halts(self) -> int:
        """What `halts` says or, when it says nothing, what is usual."""
        if self.halts is not None:
            return self.halts
        return _FEW_SHOT_HALTS if self.few_shot else 0


def load_datasets(planner: Planner, names: str, features_dir: Path) -> list[Recorded]:
    """Every episode of the comma-separated data sets, with cached features."""
    episodes: list[Recorded] = []
    for name in filter(None, names.split(",")):
        reader = DatasetReader(Path(name))
        with Processes.here().main_first():  # the others find what it has computed
            cache = FeatureCache.build(planner, reader, features_dir)
        episodes += load_recorded(reader, cache, still=planner.config.sight == "picture")
    return episodes


def scene_families(episodes: Sequence[Recorded]) -> list[str]:
    """The simulators that the episodes are of, which a policy trained on them can act in."""
    return sorted({scenes.family(episode.meta.env_id) for episode in episodes})


def agent_settings(episodes: Sequence[Recorded]) -> dict[str, Any]:
    """How the agent is to act with a policy trained on `episodes`.

    Raises:
        ValueError: they are of two robots.
    """
    families = scene_families(episodes)
    if len(families) > 1:
        raise ValueError(f"one policy moves one robot; these episodes are of {families}")
    return AGENTS[families[0]]


def print_trained(planner: Planner, module: torch.nn.Module) -> None:
    """Say of every part how many weights are trained and how many frozen.

    Args:
        planner: all of its parts are named.
        module: what is trained. Of what is not in it nothing is.
    """
    if not Processes.here().is_main:
        return
    learning = {id(p) for p in module.parameters() if p.requires_grad}
    for name, part in (dict(planner.named_children()) | dict(module.named_children())).items():
        trained = sum(p.numel() for p in part.parameters() if id(p) in learning)
        frozen = sum(p.numel() for p in part.parameters()) - trained
        print(f"{name:16s} trained {trained:>12,} frozen {frozen:>12,}", file=sys.stderr)


def state_statistics(episodes: Sequence[Recorded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the robot states, each (S,)."""
    states = torch.cat([torch.from_numpy(e.state) for e in episodes])
    return states.mean(0), states.std(0)


def finetune(options: FinetuneOptions) -> int:
    """Run one stage. Returns the exit status.

    Raises:
        ValueError: the stage needs a data set and none is given.
    """
    options = replace(options, stage=_STAGES.get(options.stage, options.stage))
    _check_given(options)
    left_out = tasks_left_out(options.leave_out, (options.model, options.adapter_from))
    if options.threads:
        torch.set_num_threads(options.threads)
    seed_all(options.seed)
    planner = planner_to_train(options)
    if options.stage == "align":
        if planner.config.sight == "none":
            raise ValueError(
                "stage align learns to see, and this planner is blind: give --sight clip or picture"
            )
        return align(planner, options, left_out)
    if options.stage == "heads":
        from embodied.cli.finetune_heads import finetune_heads

        return finetune_heads(planner, options, left_out)
    if options.stage == "places":
        from embodied.cli.finetune_places import finetune_places

        return finetune_places(planner, options, left_out)
    from embodied.cli.finetune_plan import finetune_plan

    return finetune_plan(planner, options, left_out)


def _check_given(options: FinetuneOptions) -> None:
    """Raises ValueError when the stage has nothing to learn from, or cannot use what is given."""
    stage = options.stage
    if stage in ("heads", "places") and options.model is None:
        raise ValueError(f"stage {stage} adds to a planner: give its --model")
    if stage in ("heads", "places") and not (options.dataset or options.look_at):
        raise ValueError(f"stage {stage} needs recorded episodes: give --dataset or --look_at")
    if options.few_shot and options.stage != "plan":
        raise ValueError("--few_shot is for stage plan")
    check_min_score(options.min_score)
    if options.n_halts < 0:
        raise ValueError(f"--halts must be 0 or more, got {options.n_halts}")
    if options.mix and options.stage != "plan":
        raise ValueError("--mix is for stage plan")
    if options.judge_in and options.stage != "heads":
        raise ValueError("--judge_in is for stage heads")
    given = options.dataset or options.look_at or options.records
    if options.stage != "words" and not given:
        raise ValueError(
            f"stage {options.stage} needs recorded episodes: give --dataset or --look_at, or "
            "records: --records"
        )


def align(planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...] = ()) -> int:
    """Stage 1: Embodied-former, with the policy of episodes and the language mapping of records.

    Raises:
        ValueError: what is left out leaves nothing.
    """
    act_on = without(load_datasets(planner, options.dataset, options.features_dir), left_out)
    extra = without(load_datasets(planner, options.look_at, options.features_dir), left_out)
    records = chosen_records(planner, options, left_out)
    if not (act_on or extra or records):
        raise ValueError("--leave_out leaves no episode and no record to learn from")
    agent = agent_settings(act_on) if act_on else {}
    policy = _fresh_policy(planner, act_on, options.horizon) if act_on else None
    planner.forget_places()  # the former is about to change
    module, sampler = _to_align(planner, options, (act_on, extra, records), policy, left_out)
    print_trained(planner, module)
    figures = run_training("finetune", module, sampler, options)
    if not Processes.here().is_main:
        return 0
    notes: dict[str, Any] = {
        **trained_on(options, (options.model, options.adapter_from)),
        "scenes": scene_families([*act_on, *extra]),
        LEFT_OUT: list(left_out),
        "figures": figures,
    }
    looked_at = [(episode.meta.env_id, episode.meta.seed) for episode in (*act_on, *extra)]
    looked_at += layouts_of(records)
    notes |= looked_at_notes(looked_at, (options.model, options.adapter_from))
    planner.save(options.output_dir / "planner", **notes)
    if policy is not None:
        notes |= seen_notes(episode.meta for episode in act_on)
        save_policy(options.output_dir / "policy", policy, None, agent=agent, **notes)
    return 0


def _to_align(
    planner: Planner,
    options: FinetuneOptions,
    given: tuple[list[Recorded], list[Recorded], list[SeenRecord]],
    policy: Any,
    left_out: tuple[str, ...],
) -> tuple[torch.nn.Module, Callable[[int], Any]]:
    """What stage align trains, and its batches.

    Args:
        given: episodes to imitate, more to look at, and records.
    """
    from embodied.cli import align_records

    act_on, extra, records = given
    shares = align_shares(bool(act_on), bool(act_on or extra), shown_by(records))
    sizes = shares.scaled(options.batch_size)
    turns = AlignmentTurns(records, sizes.records, seed=options.seed)
    if not (act_on or extra):
        speech = align_records.speech_of_the_former(planner, options.gradient_checkpointing)
        return speech, turns
    module = Alignment(planner.former, policy, planner.embed_texts, len(planner.config.cameras))
    sampler = AlignmentSampler(
        act_on,
        with_halts([*act_on, *extra], options.n_halts, options.seed),
        language.Phrases(left_out),
        options.horizon,
        sizes=sizes.scenes,
        seed=options.seed,
    )
    if not records:
        return module, sampler
    speech = align_records.speech_of_the_former(planner, options.gradient_checkpointing)
    return align_records.Both(module, speech), align_records.of_both(sampler, turns)


def _fresh_policy(planner: Planner, episodes: Sequence[Recorded], horizon: int) -> Any:
    """A policy for the robot of `episodes`, to be trained together with the planner's former."""
    config = planner.config
    policy = policies.make(
        "mlp",
        n_queries=config.former.n_queries,
        width=config.former.width,
        global_width=config.global_width,
        state_size=episodes[0].state.shape[1],
        action_size=episodes[0].action.shape[1],
        horizon=horizon,
    )
    policy.set_state_statistics(*state_statistics(episodes))
    return policy
