"""A run of a policy in an environment: every choice made, trained, and tested on fresh episodes.

::

    metrics.jsonl     one line a rollout
    checkpoints/      the newest two, exact
    model/            policy.safetensors and config.json, which `to_sb3` makes a model of stable-baselines3 of
    frames.png        some pictures of one test episode, where the environment draws itself
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ..errors import CheckpointError, DataError
from ..io import trust
from ..io.expressions import one_line
from ..io.files import csv_text, remove_unfinished
from ..io.run_record import Request
from ..io.tensors import canonical
from ..training.fit import choose_device
from ..training.task_type import Listeners
from .environments import Environment, replays
from .episodes import Episodes, Player, play_test
from .store import describe_space, load_policy, policy_arguments, read_config, save_policy
from .training import Arm, Place, Trained, train

STEPS = 100_000  # of the environment, where none are asked for
SHOWN = 6  # pictures of the strip
USED = {"lr", "clip", "save_seconds", "save_steps"}  # training options that mean something here
OWN_FIELDS = {
    "data",
    "method",
    "steps",
    "batch_size",
    "seed",
    "device",
    "control",
    "training",
    "raw_csv",
    "net",
    "sees",
    "teacher",
    "episodes",
    "engine",
    "deployment",
}
NOTHING_TAUGHT = (
    "nothing taught this policy but its reward; a second opinion has something to teach where a part of the state is "
    "hidden from the policy (--sees KEY), where the network is smaller (--net 8,8), where there is a teacher "
    "(--teacher ZIP), or among several policies (--method 'policy_peers()')"
)


class EnvironmentData(NamedTuple):
    """An environment as run.json describes data; ``tested`` is the number of test episodes."""

    environment: Environment
    digest: str
    steps: int
    tested: int = 0

    def describe(self) -> dict[str, Any]:
        """Name, task, steps and episodes, and a digest of id and spaces."""
        rows = {"steps": self.steps, "test": self.tested}
        return {
            "name": str(self.environment),
            "task": "control",
            "rows": rows,
            "classes": [],
            "noise": 0.0,
            "fingerprint": self.digest,
        }


@dataclass
class ControlRun:
    """A run of a policy with every choice made."""

    request: Request
    arm: Arm
    expression: str
    settings: dict[str, Any]
    data: EnvironmentData
    build: str
    note: str
    replays: bool

    def threads(self) -> int:
        """One: the networks are small, and environments take turns."""
        return torch.get_num_threads() if "CnnPolicy" in self.build else 1

    @property
    def player(self) -> Player:
        """How the policy is tested: as it will be deployed."""
        return Player(self.arm.environment, self.request.seed, self.request.deployment != "sampled")

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Train the policy, from wherever it was cut; then play the test episodes, once."""
        trained = self._train(self.arm, folder, self.expression, listeners)
        listeners.tell("the test episodes are played")
        (test,) = play_test(self.player, [trained.policy], self.request.episodes)
        if test.cut:
            listeners.warn(f"{test.cut} of {len(test.returns)} test episodes had no end and were cut")
        save_policy(folder / "model", trained.model, self.arm.environment, self.arm.hidden)
        return self._result(folder, trained, test, _draw(folder, self.player, trained.policy))

    def _train(self, arm: Arm, folder: Path, name: str, listeners: Listeners) -> Trained:
        saving = {key: value for key, value in self.request.training if key.startswith("save_")}
        place = Place(folder, replays=self.replays, progress=listeners.progress(name), warn=listeners.warn, **saving)
        return train(arm, place)

    def _result(self, folder: Path, trained: Trained, test: Episodes, frames: str | None) -> dict[str, Any]:
        scores = {**test.figures(), "env_steps": trained.steps, "updates": trained.updates}
        return {
            "kind": "control",
            "run": str(folder),
            "method": self.expression,
            "model": self.build,
            "parameters": sum(p.numel() for p in trained.policy.parameters()),
            "data": self.data._replace(tested=len(test.returns), steps=trained.steps).describe(),
            "seed": self.request.seed,
            "final_generation": 0,
            "chosen": "method",
            "test": scores,
            "generations": [{"generation": 0, "test": scores}],
            "steps": trained.steps,
            "seconds": round(trained.seconds, 2),
            "control": {
                "deployment": "greedy" if self.player.greedy else "sampled",
                "frames": frames,
                "note": NOTHING_TAUGHT,
                "arms": [{"name": self.expression, "log": "metrics.jsonl", "scores": scores}],
            },
        }


def prepare(request: Request) -> ControlRun:
    """Make the environment and fill in what the request leaves open.

    Raises:
        DataError: there is no such environment, it is not served, or an option means nothing for one.
    """
    refuse_other_options(request)
    environment = Environment.of(request.data, request.sees)
    env = environment.make()
    space, actions = env.observation_space, env.action_space
    arm = _arm(request, environment, environment.hidden(space))
    policy, _ = policy_arguments(space, arm.hidden, arm.net)
    layers = ",".join(map(str, arm.net or ((64, 64) if policy != "CnnPolicy" else (512,))))
    exact = replays(environment, request.seed)
    notes = []
    if left_out := env.get_wrapper_attr("left_out"):
        notes.append(f"{environment}: the policy does not read {', '.join(left_out)} of the observation")
    if not exact:
        notes.append(f"{environment} does not replay: a run that is cut resumes at an episode's start, not bit for bit")
    described = {"observation": describe_space(space), "action": describe_space(actions), "sees": request.sees}
    digest = hashlib.sha256(canonical({"id": str(environment), **described})).hexdigest()[:16]
    env.close()
    settings = {
        **{field.name: vars(arm)[field.name] for field in fields(arm) if field.name != "environment"},
        "net": arm.net and list(arm.net),
        "hidden": list(arm.hidden),
        "versions": {name: version(name) for name in ("gymnasium", "stable-baselines3")},
    }
    data = EnvironmentData(environment, digest, arm.rollouts * arm.per_rollout)
    build = f"{arm.engine.upper()}, {policy} of {layers}"
    return ControlRun(request, arm, "restarted()", settings, data, build, "\n".join(notes), exact)


def _arm(request: Request, environment: Environment, hidden: tuple[str, ...]) -> Arm:
    """What decides the training of the policy."""
    training, steps = dict(request.training), request.steps or STEPS
    engine = request.engine or "ppo"
    if engine not in ("ppo", "a2c"):
        raise DataError(f"--engine is ppo or a2c, not {engine!r}")
    if request.deployment not in (None, "greedy", "sampled"):
        raise DataError(f"deployment is greedy or sampled, not {request.deployment!r}")
    usual = {"ppo": {"rollout": 128, "lr": 1e-3}, "a2c": {"rollout": 8, "lr": 7e-4}}[engine]
    arm = Arm(environment, steps, request.seed, engine, read_net(request.net), hidden, **usual)  # type: ignore[arg-type]
    rollout = max(1, min(arm.rollout, -(-steps // arm.environments)))
    return replace(
        arm,
        rollout=rollout,
        batch_size=min(request.batch_size or arm.batch_size, rollout * arm.environments),
        lr=training.get("lr", arm.lr),
        clip=training.get("clip", arm.clip),
        device=str(choose_device(request.device or "cpu")),
    )


def read_net(net: str | None) -> tuple[int, ...] | None:
    """The sizes of hidden layers.

    >>> read_net("8,8")
    (8, 8)

    Raises:
        DataError: they are no whole numbers from 1 on.
    """
    if net is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", net.replace(" ", "")):
        raise DataError(f"--net is sizes of hidden layers, such as 64,64, not {one_line(net, 40)!r}")
    return tuple(int(size) for size in net.split(","))


def refuse_other_options(request: Request) -> None:
    """Refuse what means nothing for an environment.

    Raises:
        DataError: such an option was given.
    """
    given = [field.name for field in fields(request) if vars(request)[field.name] != field.default]
    wrong = [name for name in given if name not in OWN_FIELDS]
    wrong += [name for name, _ in request.training if name not in USED]
    if wrong:
        remedy = {"model": "; give --net 64,64", "epochs": "; give --steps"}.get(wrong[0], "; leave it out")
        raise DataError(f"--{wrong[0].replace('_', '-')} has no meaning for an environment{remedy}")


# ---- pictures ------------------------------------------------------------------------------------------------------


def _draw(folder: Path, player: Player, policy: ActorCriticPolicy) -> str | None:
    """Write a strip of pictures of the first test episode; why there is none, or None."""
    try:
        from PIL import Image

        frames = player.frames(policy, "test", 0, most=1000)
        if not frames:
            return "the environment draws no pictures"
        chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, SHOWN).astype(int)]
        height, width = chosen[0].shape[:2]
        size = (max(1, 160 * width // height), 160)
        strip = np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in chosen], 1)
        Image.fromarray(strip).save(folder / "frames.png")
    except Exception as error:  # of the environment's own drawing, which the run can do without
        return one_line(error, 120)
    return None


def _write_gif(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_unfinished(path.parent, path.name)
    pictures[0].save(unfinished, "GIF", save_all=True, append_images=pictures[1:], duration=33, loop=0)
    unfinished.replace(path)


# ---- episodes of a finished run ------------------------------------------------------------------------------------


class PlayedEpisodes(NamedTuple):
    """Episodes of a finished policy: a row an episode."""

    rows: list[tuple[Any, ...]]
    note: str = ""

    def text(self, raw: bool = False) -> str:
        """The rows as CSV."""
        return csv_text([("episode", "seed", "return", "length"), *self.rows], raw)


def play_episodes(folder: Path, request: Request, count: int, video: Path | None) -> PlayedEpisodes:
    """Play fresh episodes with the final policy of a run, from the test's seeds on.

    Raises:
        CheckpointError: the run has no policy yet, or its environment is registered by code that is not trusted.
        DataError: the environment cannot be made, or draws nothing.
    """
    if not (folder / "model" / "config.json").exists():
        raise CheckpointError(f"{folder} has no model yet; finish it by `selfdistill resume {folder}`")
    saved = read_config(folder / "model")["environment"]
    environment = Environment(saved["module"], saved["id"], saved["sees"])
    for place, name in environment.code():
        trust.require_trust(place, name, folder / "model" / "config.json", folder)
    policy = load_policy(folder)
    player = Player(environment, request.seed, request.deployment != "sampled")
    played = player.play(policy, "test", count)
    rows = list(zip(range(1, count + 1), played.seeds, played.returns.tolist(), played.lengths.tolist(), strict=True))
    if video is not None:
        _record(player, policy, count, video)
    figures = played.figures()
    half = "" if figures["half"] is None else f" ± {figures['half']:.4g}"
    how = "greedy" if player.greedy else "sampled"
    cut = f"; {played.cut} had no end and were cut" if played.cut else ""
    return PlayedEpisodes(rows, f"mean return {figures['return']:.4g}{half}, {count} episodes, {how} actions{cut}")


def _record(player: Player, policy: ActorCriticPolicy, count: int, video: Path) -> None:
    """Write an animated GIF of each episode."""
    try:
        video.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{video} cannot be made ({error.strerror}); give another --video") from error
    for number in range(count):
        try:
            frames = player.frames(policy, "test", number, most=1000)
        except Exception as error:  # of the environment's own drawing
            raise DataError(
                f"{player.environment} cannot be drawn ({one_line(error, 120)}); leave --video out"
            ) from error
        if not frames:
            raise DataError(f"{player.environment} draws no pictures; leave --video out")
        _write_gif(video / f"episode-{number + 1}.gif", frames)
