"""Teachers of policies: read from a zip of stable-baselines3 without unpickling, a run folder, a model or a module.

A zip holds pickles beside its weights. Only ``policy.pth`` is read, as tensors, and what ``data`` says in plain text:
the activation function, the normalisation of images, gSDE's deviations, the features extractor and the keys of the
observation. The network is inferred from the shapes of its weights, and the observation from the environment's.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import ObservationWrapper, spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from ..errors import DataError, SelfdistillError
from ..io.expressions import one_line
from ..io.tensors import read_tensors, write_tensors
from .actors import Actor, ModuleActor, ObservationLayout, SelectedColumns, copy_policy
from .store import ACTIVATIONS, VisibleExtractor, load_policy

LARGEST = 1 << 32  # bytes that the weights of a zip may have

_EXTRACTORS = {f.__name__ for f in (CombinedExtractor, FlattenExtractor, NatureCNN, VisibleExtractor)}


def hide(*keys: str) -> dict[str, Any]:
    """The ``policy_kwargs`` of an SB3 model that does not see these keys of a Dict observation.

    >>> sorted(hide("state"))
    ['features_extractor_class', 'features_extractor_kwargs']
    """
    return {"features_extractor_class": VisibleExtractor, "features_extractor_kwargs": {"hidden": keys}}


def hidden_keys(sees: Any, space: spaces.Space[Any]) -> tuple[str, ...]:
    """The keys that the teacher alone sees, from what a recipe says of them.

    Args:
        sees: keys, parted by commas or listed; an ObservationWrapper, by which the environment has the key
            ``teacher``; or None.
        space: the observation space.

    Raises:
        DataError: the space has no such key.
    """
    if sees is None:
        return ()
    wrapper = isinstance(sees, type) and issubclass(sees, ObservationWrapper)
    names = sees if isinstance(sees, list | tuple) else [key.strip() for key in str(sees).split(",")]
    keys = ("teacher",) if wrapper or ":" in str(sees) else tuple(names)
    if keys != tuple(names) and not (isinstance(space, spaces.Dict) and keys[0] in space.spaces):
        raise DataError(
            "what a wrapper shows the teacher is the key 'teacher' of a Dict observation, beside the student's view; "
            f"the environment has no such key ({type(space).__name__}): wrap it so, or name the keys that are hidden"
        )
    ObservationLayout.of(space, keys)
    return keys


def refuse_visible(policy: BasePolicy, hidden: Sequence[str]) -> None:
    """Refuse a student that sees what its teacher alone is to see.

    Raises:
        DataError: it does.
    """
    extractor = policy.features_extractor
    shown = [key for key in hidden if not (isinstance(extractor, VisibleExtractor) and key in extractor.hidden)]
    if shown:
        keys = ", ".join(repr(key) for key in hidden)
        raise DataError(
            f"the student sees the key {shown[0]!r}, which its teacher alone is to see; make it with "
            f"policy_kwargs=selfdistill.control.hide({keys})"
        )


# ---- normalisers ----------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A teacher that reads normalised observations, with the statistics that it was trained with.

    Args:
        actor: reads normalised rows.
        mean, deviation: of each column, (width,).
        clip: largest absolute value of a normalised number.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, actor: nn.Module, mean: Tensor, deviation: Tensor, clip: float) -> None:
        super().__init__()
        self.actor, self.clip = actor, clip
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, rows: Tensor) -> Any:
        """The actor's heads of raw rows."""
        return self.actor(((rows - self.mean) / self.deviation).clamp(-self.clip, self.clip))


class Unnormalised(nn.Module):
    """A teacher that reads raw observations, beside a student whose environments are normalised.

    Rows are taken back by the statistics of now, which differ from those of their collection as long as these settle.

    Args:
        actor: reads raw rows.
        normaliser: of the student's environments.
        layout: of the rows.
    """

    def __init__(self, actor: nn.Module, normaliser: VecNormalize, layout: ObservationLayout) -> None:
        super().__init__()
        self.actor, self.layout = actor, layout
        self.normaliser = (normaliser,)  # in a tuple: nothing of it is copied or saved

    def forward(self, rows: Tensor) -> Any:
        """The actor's heads of normalised rows."""
        statistics = normaliser_statistics(self.normaliser[0], self.layout)
        return self.actor(rows * statistics["deviation"].to(rows.device) + statistics["mean"].to(rows.device))


def normaliser_statistics(normaliser: VecNormalize, layout: ObservationLayout) -> dict[str, Tensor]:
    """Mean and deviation of each column of flat rows, and the clip.

    Args:
        normaliser: SB3's normaliser of observations.
        layout: of the rows; parts that are not normalised have mean 0 and deviation 1.

    Raises:
        DataError: a wrapper between the normaliser and the policy has changed the shape of the observations.
    """
    mean, deviation = torch.zeros(layout.width), torch.ones(layout.width)
    statistics = normaliser.obs_rms if isinstance(normaliser.obs_rms, dict) else {"": normaliser.obs_rms}
    place = 0
    for name, shape in layout.parts:
        size = torch.Size(shape).numel()
        running = statistics.get(name)
        if running is not None and normaliser.norm_obs:
            if tuple(running.mean.shape) != shape:
                raise DataError(
                    f"VecNormalize has statistics of {tuple(running.mean.shape)} for observations of {shape}; put it "
                    "around all other wrappers of the environments"
                )
            mean[place : place + size] = torch.as_tensor(running.mean, dtype=torch.float32).flatten()
            variance = torch.as_tensor(running.var, dtype=torch.float32).flatten()
            deviation[place : place + size] = (variance + normaliser.epsilon).sqrt()
        place += size
    return {"mean": mean, "deviation": deviation, "clip": torch.tensor(float(normaliser.clip_obs))}


def export_normaliser(normaliser: VecNormalize, path: str | Path) -> None:
    """Write the statistics of a `VecNormalize` as safetensors: ``teacher.safetensors`` beside ``teacher.zip``.

    Args:
        normaliser: the environments as they are after the teacher's training.
        path: the file to write.
    """
    write_tensors(Path(path), normaliser_statistics(normaliser, ObservationLayout.of(normaliser.observation_space)))


def normalised(actor: nn.Module, statistics: Mapping[str, Tensor], width: int, place: str) -> nn.Module:
    """The teacher behind a normaliser.

    Raises:
        DataError: the statistics are of another width.
    """
    shapes = {name: tuple(values.shape) for name, values in statistics.items()}
    whole = shapes == {"mean": (width,), "deviation": (width,), "clip": ()}
    if not (
        whole
        and all(values.isfinite().all() for values in statistics.values())
        and bool((statistics["deviation"] > 0).all())
    ):
        raise DataError(
            f"{place} holds no statistics of {width} numbers; write it by selfdistill.control.export_normaliser"
        )
    return Normalised(actor, statistics["mean"], statistics["deviation"], float(statistics["clip"]))


# ---- reading ----------------------------------------------------------------------------------------------------


def read_teacher(
    source: Any,
    space: spaces.Space[Any],
    actions: spaces.Space[Any],
    hidden: Sequence[str] = (),
    values: bool = False,
) -> nn.Module:
    """A teacher as a frozen module from flat rows to heads.

    Args:
        source: an SB3 model or policy, a module from observations to logits (or a mapping of heads), the path of an SB3
            zip, or a run folder.
        space: what a row holds: all that the environment shows.
        actions: the action space of the environment.
        hidden: the keys that the student does not see; a teacher of one of these alone is served.
        values: whether it answers with the value of each row too.

    Raises:
        DataError: it cannot be read, or needs other observations or actions.
    """
    teacher = _read(source, space, actions, hidden)
    for module in teacher.modules():
        if isinstance(module, Actor):
            module.values = values
    _check_answers(teacher, space, actions, values)
    return teacher


def _read(source: Any, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str]) -> nn.Module:
    """The teacher of a source, not tried yet."""
    if isinstance(source, BaseAlgorithm):
        teacher = _of_policy(source.policy, space, actions, hidden)
        normaliser = own_normaliser(source.get_env())
        if normaliser is not None:
            statistics = normaliser_statistics(normaliser, ObservationLayout.of(source.observation_space))
            return _behind(teacher, statistics, "the teacher's VecNormalize")
        return teacher
    if isinstance(source, BasePolicy):
        return _of_policy(source, space, actions, hidden)
    if isinstance(source, nn.Module):
        return ModuleActor(source.eval(), ObservationLayout.of(space), isinstance(actions, spaces.Box))
    if not isinstance(source, str | Path):
        raise DataError(
            f"a teacher is an SB3 model, a module, an SB3 zip or a run folder, not a {type(source).__name__}"
        )
    path = teacher_path(source)
    if path.suffix == ".pkl":
        raise DataError(
            f"{path} is a pickle, which is never read; export the statistics of the normaliser by "
            "selfdistill.control.export_normaliser(env, 'teacher.safetensors'), and give teacher.zip beside it"
        )
    if path.is_dir():
        return _of_policy(load_policy(path), space, actions, hidden)
    if not path.exists():
        raise DataError(f"{path} does not exist; give an SB3 zip, or the folder of a run of a policy")
    teacher = _of_policy(read_zip(path, space, actions, hidden), space, actions, hidden)
    beside = path.with_suffix(".safetensors")
    return _behind(teacher, read_tensors(beside), str(beside)) if beside.exists() else teacher


def teacher_path(source: str | Path) -> Path:
    """The path of a teacher: a name without ``.zip`` is that of the zip, as `save` and `load` of SB3 have it."""
    path = Path(source)
    if not path.exists() and path.with_name(f"{path.name}.zip").exists():
        return path.with_name(f"{path.name}.zip")
    return path


def _check_answers(teacher: nn.Module, space: spaces.Space[Any], actions: spaces.Space[Any], values: bool) -> None:
    """Ask a teacher about two rows of zeros before training begins.

    Raises:
        DataError: it cannot read them, or answers in other shapes than the actions have.
    """
    layout = ObservationLayout.of(space)
    kind = torch.float32 if layout.keys else torch.as_tensor(np.zeros((), space.dtype)).dtype
    if not all(bool(weight.isfinite().all()) for weight in teacher.parameters()):
        raise DataError("a weight of the teacher is nan or infinite; give an earlier one")
    weight = next((weight for weight in teacher.parameters()), torch.zeros(()))
    try:
        with torch.no_grad():
            answer = teacher.to(weight.device)(torch.zeros(2, layout.width, dtype=kind, device=weight.device))
    except SelfdistillError:
        raise
    except Exception as error:  # another's code: whatever it raises is about this module
        raise DataError(
            f"the teacher cannot read observations of {layout.describe()} ({one_line(error, 100)}); {_REMEDY}"
        ) from error
    wanted = _answer_shape(actions) | ({"values": (2, 1)} if values else {})
    shapes = {name: tuple(value.shape) for name, value in answer.items()}
    for head, shape in wanted.items():
        if shapes.get(head) == shape and bool(answer[head].isnan().any()):
            raise DataError("the teacher answers with nan to rows of zeros; give another teacher")
        if shapes.get(head) != shape:
            remedy = "leave its weight at 0" if head == "values" else "give a teacher of these actions"
            raise DataError(f"the teacher answers with {shapes} to two rows, where {head} is to be {shape}; {remedy}")


def _answer_shape(actions: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """The head of a policy's actions, and its shape for two rows.

    Raises:
        DataError: no policy of SB3 has such actions.
    """
    if isinstance(actions, spaces.Box):
        return {"gaussian": (2, int(np.prod(actions.shape)), 2)}
    if isinstance(actions, spaces.Discrete):
        return {"logits": (2, int(actions.n))}
    if isinstance(actions, spaces.MultiDiscrete):
        return {"logits": (2, len(actions.nvec), int(actions.nvec.max()))}
    if isinstance(actions, spaces.MultiBinary):
        return {"logits": (2, int(np.prod(actions.n)), 2)}
    raise DataError(f"actions of {actions} are not served; give Discrete, MultiDiscrete, MultiBinary or Box")


def _behind(teacher: nn.Module, statistics: Mapping[str, Tensor], place: str) -> nn.Module:
    """The teacher behind its normaliser, whose columns are those that it reads."""
    if isinstance(teacher, SelectedColumns):
        teacher.actor = normalised(teacher.actor, statistics, teacher.layout.width, place)
        return teacher
    assert isinstance(teacher, Actor)
    return normalised(teacher, statistics, teacher.layout.width, place)


def _of_policy(policy: Any, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str]) -> nn.Module:
    """An actor-critic policy as a module from rows of ``space``.

    Raises:
        DataError: it is of another kind, or has other actions or observations.
    """
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise DataError("a recurrent policy answers by its memory and cannot teach single states; give another teacher")
    if not isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        raise DataError(f"a {type(policy).__name__} is no actor-critic policy; give one of PPO, A2C or their kin")
    if not _alike(policy.action_space, actions):
        raise DataError(
            f"the teacher acts in {policy.action_space}, the environment in {actions}; give another teacher"
        )
    policy = copy_policy(policy)  # a teacher is frozen
    policy.set_training_mode(False)
    rows, own = ObservationLayout.of(space), ObservationLayout.of(policy.observation_space)
    if own.parts == rows.parts:
        return Actor(policy, own)
    if own.keys and dict(own.parts).items() <= dict(rows.parts).items():
        return SelectedColumns(Actor(policy, own), rows, own)
    if not own.keys and rows.keys:
        shape = own.parts[0][1]
        fits = [key for key, part in rows.parts if part == shape]
        fits = [key for key in fits if key in hidden] or fits
        if len(fits) == 1:
            return SelectedColumns(Actor(policy, own), rows, ObservationLayout(((fits[0], shape),)))
    raise DataError(f"the teacher reads {own.describe()}, and the environment shows {rows.describe()}; {_REMEDY}")


_REMEDY = "wrap the environment so that it shows what the teacher was trained on, as a key of a Dict"


def _alike(ours: spaces.Space[Any], theirs: spaces.Space[Any]) -> bool:
    """Whether two action spaces have the same actions; the bounds of continuous ones may differ."""
    if isinstance(ours, spaces.Box) and isinstance(theirs, spaces.Box):
        return ours.shape == theirs.shape
    return bool(ours == theirs)


def read_zip(
    path: Path, space: spaces.Space[Any], actions: spaces.Space[Any], hidden: Sequence[str] = ()
) -> ActorCriticPolicy:
    """The policy of an SB3 zip; nothing in it is unpickled.

    Args:
        path: the zip.
        space, actions: of the environment.
        hidden: keys that the student does not see.

    Raises:
        DataError: it is no such zip, or its weights fit no policy on these observations and actions.
    """
    weights, data = _contents(path)
    facts = data.get("policy_kwargs")
    facts = facts if isinstance(facts, dict) else {}
    if any(name.startswith("lstm") for name in weights):
        raise DataError(f"{path} holds a recurrent policy, which cannot teach single states; give another teacher")
    if "action_net.weight" not in weights:
        raise DataError(f"{path} holds no actor-critic policy; give one of PPO, A2C or their kin")
    _refuse_own_parts(path, facts)
    keys = _keys(data, facts)
    for candidate in itertools.islice(_candidates(space, hidden, keys), 256):
        policy = _build(candidate, actions, weights, facts)
        if policy is not None:
            return policy
    first = next(
        (v for n, v in weights.items() if n.startswith("mlp_extractor.policy_net")), weights["action_net.weight"]
    )
    source = f" of the keys {', '.join(keys)}" if keys else ""
    raise DataError(
        f"{path}: its network reads {first.shape[-1]} numbers{source} and chooses by "
        f"{len(weights['action_net.weight'])}; the environment shows {ObservationLayout.of(space).describe()} and acts "
        f"in {actions}; {_REMEDY}"
    )


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a zip, and what its ``data`` says.

    Raises:
        DataError: it is no zip of stable-baselines3, or its weights are none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            missing = [name for name in ("policy.pth", "data") if name not in sizes]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
            if sizes["policy.pth"] + sizes["data"] > LARGEST:
                raise ValueError("it is too large")
            packed = io.BytesIO(archive.read("policy.pth"))
            weights = torch.load(packed, map_location="cpu", weights_only=True)
            data = json.loads(archive.read("data"))
    except Exception as error:  # a foreign file raises what it likes: its readers are small machines of their own
        raise DataError(
            f"{path} is no zip of stable-baselines3 ({one_line(error, 100)}); give one that `save` wrote"
        ) from None
    if not isinstance(data, dict) or not _plain(weights):
        raise DataError(f"{path}: its policy.pth holds no finite weights; give a zip that `save` wrote")
    return weights, data


def _plain(weights: Any) -> bool:
    """Whether these are finite weights by name, each of as many numbers as it has in the file."""
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        return False
    for value in weights.values():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
            return False
        if value.is_meta or not value.dim() or value.nbytes > value.untyped_storage().nbytes():
            return False
    dimensions = all(value.dim() == 2 for name, value in weights.items() if re.search(r"_net(\.\d+)?\.weight$", name))
    return dimensions and all(bool(value.isfinite().all()) for value in weights.values())


def _name(fact: Any) -> str:
    """The name of a class in the text that SB3 writes for it."""
    match = re.search(r"(\w+)'>$", str(fact))
    return match[1] if match else str(fact)


def _refuse_own_parts(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a network with parts whose code the zip alone has.

    Raises:
        DataError: it has such an activation function or features extractor.
    """
    activation, extractor = _name(facts.get("activation_fn", nn.Tanh)), facts.get("features_extractor_class")
    if activation not in ACTIVATIONS:
        raise DataError(
            f"{path}: its activation function {one_line(activation, 60)} is none of {', '.join(ACTIVATIONS)}; give "
            "the model itself as teacher, by PPO.load"
        )
    if extractor is not None and _name(extractor) not in _EXTRACTORS:
        raise DataError(
            f"{path}: its features extractor {one_line(_name(extractor), 60)} is of its own; give the model itself as "
            "teacher, by PPO.load"
        )


def _keys(data: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the Dict observation that a policy reads; none for a plain one."""
    space = data.get("observation_space")
    text = space.get("spaces") if isinstance(space, dict) else None
    hidden = re.findall(r"'([^']+)'", str(facts.get("features_extractor_kwargs", "")).partition("'hidden'")[2])
    keys = re.findall(r"'([^']+)'(?:: |, )[A-Z]", str(text)) if text is not None else []
    return tuple(key for key in keys if key not in hidden)


def _candidates(space: spaces.Space[Any], hidden: Sequence[str], keys: Sequence[str]) -> Iterator[spaces.Space[Any]]:
    """The observations that a teacher may have been trained on, the likeliest first."""
    if keys:
        if isinstance(space, spaces.Dict) and all(key in space.spaces for key in keys):
            yield spaces.Dict({key: space.spaces[key] for key in keys})
        return
    if not isinstance(space, spaces.Dict):
        yield space
        return
    for key in (*hidden, *(key for key in space.spaces if key not in hidden)):
        yield space.spaces[key]


def _build(
    space: spaces.Space[Any], actions: spaces.Space[Any], weights: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> ActorCriticPolicy | None:
    """The policy on these observations that the weights fit; None if they fit none."""
    deviation, bias = weights.get("log_std", torch.zeros(1)), weights["action_net.weight"]
    normalise = str(facts.get("normalize_images")) != "False"
    options: dict[str, Any] = {
        "activation_fn": ACTIVATIONS[_name(facts.get("activation_fn", nn.Tanh))],
        "net_arch": {part: _widths(weights, net) for part, net in (("pi", "policy_net"), ("vf", "value_net"))},
        "use_sde": deviation.dim() == 2,
        "full_std": deviation.dim() != 2 or deviation.shape[1] == len(bias),
        "use_expln": str(facts.get("use_expln")) == "True",
        "normalize_images": normalise,
        "share_features_extractor": all(
            torch.equal(value, weights.get(key.replace("vf_", "", 1), value))
            for key, value in weights.items()
            if key.startswith("vf_features_extractor.")
        ),
    }
    kind: type[ActorCriticPolicy] = ActorCriticPolicy
    wide = next((len(value) for key, value in weights.items() if re.match(r"features.*linear\.0\.bias$", key)), None)
    if isinstance(space, spaces.Dict):
        kind = MultiInputActorCriticPolicy
        options["features_extractor_kwargs"] = {} if wide is None else {"cnn_output_dim": wide}
    elif wide is not None:
        if not is_image_space(space, normalized_image=not normalise):
            return None
        kind = ActorCriticCnnPolicy
        options["features_extractor_kwargs"] = {"features_dim": wide}
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, and the student's draws stay as they are
            policy = kind(space, actions, lambda _: 0.0, **options)
    except (AssertionError, ValueError, TypeError):
        return None
    expected = {key: tuple(value.shape) for key, value in policy.state_dict().items()}
    if expected != {key: tuple(value.shape) for key, value in weights.items()}:
        return None
    policy.load_state_dict(dict(weights))
    return policy


def _widths(weights: Mapping[str, Tensor], net: str) -> list[int]:
    """The widths of the layers of a network, in order."""
    layers = {
        int(match[1]): len(value)
        for key, value in weights.items()
        if (match := re.fullmatch(rf"mlp_extractor\.{net}\.(\d+)\.weight", key))
    }
    return [width for _, width in sorted(layers.items())]


def own_normaliser(environments: Any) -> VecNormalize | None:
    """The normaliser of observations around an algorithm's environments, if there is one."""
    normaliser = unwrap_vec_normalize(environments)
    return normaliser if normaliser is not None and normaliser.norm_obs else None
