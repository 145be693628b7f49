"""Teachers of policies: zips without a pickle, normalisers, models and modules, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import Tensor, nn

from selfdistill.control import ObservationLayout, SelfDistil, export_normaliser, kickstart, read_teacher
from selfdistill.control.actors import action_head
from selfdistill.control.teachers import hidden_keys, hide
from selfdistill.errors import CheckpointError, DataError
from tests.control.common import KEYS, PICTURE, PLAIN, distance, environments, make, sharp, trained, weights

BOX = spaces.Box(-2.0, 2.0, (2,))
MIXED = spaces.Dict({"picture": PICTURE, "state": PLAIN})


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever unpickles raises; what torch imports late is imported before."""
    make(environments())

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "Unpickler"), (pickle, "loads"), (pickle, "load"), (cloudpickle, "loads")):
        monkeypatch.setattr(module, name, refuse)


def saved(model: Any, folder: Path, name: str = "teacher") -> Path:
    """The zip of a model whose weights have all moved."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save(folder / name)
    return folder / f"{name}.zip"


def rows_of(env: Any, count: int = 6) -> Any:
    """Observations as a policy takes them."""
    drawn = [env.observation_space.sample() for _ in range(count)]
    if isinstance(env.observation_space, spaces.Dict):
        return {key: torch.as_tensor(np.stack([row[key] for row in drawn])) for key in drawn[0]}
    return torch.as_tensor(np.stack(drawn))


def output(model: Any, observations: Any) -> Tensor:
    """The head of a model, by its own policy."""
    model.policy.set_training_mode(False)
    with torch.no_grad():
        answer: Tensor
        _, answer = action_head(model.policy.get_distribution(observations))
    return answer


def head(teacher: nn.Module, rows: Tensor) -> Tensor:
    """The head of a teacher."""
    with torch.no_grad():
        heads = teacher(rows)
    answer: Tensor = heads["logits"] if "logits" in heads else heads["gaussian"]
    return answer


CNN = {"features_extractor_kwargs": {"features_dim": 8}}
MODELS: dict[str, Callable[[], Any]] = {
    "defaults": lambda: make(environments(), policy_kwargs={}),
    "linear": lambda: make(environments(), policy_kwargs={"net_arch": []}),
    "apart": lambda: make(
        environments(), policy_kwargs={"net_arch": {"pi": [4, 5], "vf": []}, "activation_fn": nn.ELU}
    ),
    "relu": lambda: make(environments(), A2C, policy_kwargs={"activation_fn": nn.ReLU}),
    "keys": lambda: make(environments(KEYS)),
    "numbered": lambda: make(environments(spaces.Discrete(4))),
    "several": lambda: make(environments(action=spaces.MultiDiscrete([2, 3]))),
    "binary": lambda: make(environments(action=spaces.MultiBinary(3))),
    "box": lambda: make(environments(action=BOX)),
    "gsde": lambda: make(environments(action=BOX), use_sde=True),
    "expln": lambda: make(environments(action=BOX), use_sde=True, policy_kwargs={"use_expln": True, "full_std": False}),
    "squashed": lambda: make(environments(action=BOX), use_sde=True, policy_kwargs={"squash_output": True}),
    "picture": lambda: make(environments(PICTURE), policy="CnnPolicy", policy_kwargs=CNN),
    "flat picture": lambda: make(environments(PICTURE)),
    "raw picture": lambda: make(environments(PICTURE), policy_kwargs={"normalize_images": False}),
    "two cnns": lambda: make(
        environments(PICTURE), policy="CnnPolicy", policy_kwargs={**CNN, "share_features_extractor": False}
    ),
    "mixed": lambda: make(environments(MIXED), policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 7}}),
    "masked": lambda: make(environments(), MaskablePPO),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("sealed")
def test_a_zip_answers_as_its_model_and_nothing_is_unpickled(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    path, observations = saved(model, tmp_path), rows_of(model.get_env())
    rows = ObservationLayout.of(model.observation_space).flatten(observations)
    expected = output(model, observations)
    for source in (str(path), path.with_suffix(""), model, model.policy):
        teacher = read_teacher(source, model.observation_space, model.action_space, values=True)
        torch.testing.assert_close(head(teacher, rows), expected, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            values = model.policy.predict_values(observations)
            torch.testing.assert_close(teacher(rows)["values"], values, atol=1e-4, rtol=1e-5)


def test_the_teacher_of_a_zip_trains_as_the_model_itself(tmp_path: Path) -> None:
    model = sharp(environments())
    path = saved(model, tmp_path)
    build = lambda: make(environments())
    ours, theirs = (weights(trained(build, SelfDistil(kickstart(steps=2), one))) for one in (str(path), model))
    assert distance(ours, theirs) == 0.0


def test_a_trained_model_is_a_teacher_and_stays_as_it_is() -> None:
    model = make(environments(action=BOX))
    model.learn(32)
    before, teacher = weights(model), read_teacher(model, model.observation_space, model.action_space)
    model.learn(32)
    copied = {name.removeprefix("policy."): value for name, value in teacher.state_dict().items()}
    assert all(torch.equal(copied[name], value) for name, value in before.items())
    assert distance(before, weights(model)) > 0.0


# ---- which observations ---------------------------------------------------------------------------------------------


TWINS = spaces.Dict({"a": PLAIN, "b": PLAIN, "c": PLAIN})


@pytest.mark.parametrize("keys", [("a",), ("b", "c"), ("a", "c"), ("a", "b", "c")])
@pytest.mark.usefixtures("sealed")
def test_a_teacher_of_some_keys_reads_these_and_no_others_of_their_shape(keys: tuple[str, ...], tmp_path: Path) -> None:
    model = make(environments(spaces.Dict(dict.fromkeys(keys, PLAIN))))
    path, observations = saved(model, tmp_path), rows_of(environments(TWINS))
    rows = ObservationLayout.of(TWINS).flatten(observations)
    expected = output(model, {key: observations[key] for key in keys})
    for source in (path, model):
        torch.testing.assert_close(head(read_teacher(source, TWINS, model.action_space), rows), expected)


@pytest.mark.usefixtures("sealed")
def test_a_teacher_that_hides_keys_reads_the_others(tmp_path: Path) -> None:
    model = make(environments(TWINS), policy_kwargs={"net_arch": [8], **hide("a", "c")})
    path, observations = saved(model, tmp_path), rows_of(environments(TWINS))
    rows = ObservationLayout.of(TWINS).flatten(observations)
    expected = output(model, observations)
    for source in (path, model):
        torch.testing.assert_close(head(read_teacher(source, TWINS, model.action_space), rows), expected)


@pytest.mark.usefixtures("sealed")
def test_a_teacher_of_plain_observations_reads_the_hidden_key(tmp_path: Path) -> None:
    model = make(environments())
    path, observations = saved(model, tmp_path), rows_of(environments(TWINS))
    rows = ObservationLayout.of(TWINS).flatten(observations)
    for source in (path, model):
        teacher = read_teacher(source, TWINS, model.action_space, hidden=("b",))
        torch.testing.assert_close(head(teacher, rows), output(model, observations["b"]))
        with pytest.raises(DataError, match="the teacher reads"):
            read_teacher(source, TWINS, model.action_space)  # which of the three is not known


# ---- normalisers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [PLAIN, spaces.Dict({"far": spaces.Box(5.0, 9.0, (2,)), "state": PLAIN})], ids=["box", "dict"]
)
def test_a_teacher_under_a_normaliser_answers_as_in_its_own_environment(space: Any, tmp_path: Path) -> None:
    env = VecNormalize(environments(space), clip_obs=1.2)
    model = make(env)
    model.learn(128)
    path = saved(model, tmp_path)
    export_normaliser(env, tmp_path / "teacher.safetensors")
    observations = rows_of(environments(space))
    keyed = isinstance(observations, dict)
    normal: Any = env.normalize_obs({k: v.numpy() for k, v in observations.items()} if keyed else observations.numpy())
    normal = {k: torch.as_tensor(v) for k, v in normal.items()} if keyed else torch.as_tensor(normal)
    rows = ObservationLayout.of(space).flatten(observations)
    for source in (path, model):
        teacher = read_teacher(source, space, model.action_space)
        torch.testing.assert_close(head(teacher, rows), output(model, normal), atol=1e-4, rtol=1e-4)


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(make(environments()), tmp_path)
    other = spaces.Box(-1.0, 1.0, (5,))
    export_normaliser(VecNormalize(environments(other)), tmp_path / "teacher.safetensors")
    with pytest.raises(DataError, match=r"no statistics of 3 numbers; write it by .*export_normaliser"):
        read_teacher(path, PLAIN, spaces.Discrete(3))
    (tmp_path / "teacher.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="no intact safetensors"):
        read_teacher(path, PLAIN, spaces.Discrete(3))
    stacked = make(VecFrameStack(VecNormalize(environments()), 2))
    with pytest.raises(DataError, match="put it around all other wrappers"):
        read_teacher(stacked, stacked.observation_space, stacked.action_space)


# ---- what is refused ------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """An activation function of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def doctored(path: Path, **entries: Any) -> Path:
    """A zip with other entries; None leaves one out, and a function makes bytes of those that are there."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for key, entry in entries.items():
        name = {"weights": "policy.pth"}.get(key, key)
        contents[name] = entry(contents[name]) if callable(entry) else entry
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def repacked(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A policy.pth with changed weights."""

    def change_bytes(content: bytes) -> bytes:
        weights, file = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
        torch.save(change(dict(weights)), file)
        return file.getvalue()

    return change_bytes


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


HUGE = torch.zeros(1).expand(10**9, 3)
NAMES = "action_net.weight"
HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "no weights": ("it has no policy.pth.*that `save` wrote", {"weights": None}),
    "no data": ("it has no data", {"data": None}),
    "objects": ("is no zip of stable-baselines3", {"weights": repacked(lambda w: w | {"x": Bomb()})}),
    "a plain pickle": ("is no zip of stable-baselines3", {"weights": pickle.dumps(Bomb())}),
    "rubbish": ("is no zip of stable-baselines3", {"weights": b"PK\x03\x04" + bytes(99)}),
    "nothing": ("is no zip of stable-baselines3", {"weights": b""}),
    "data is no JSON": ("is no zip of stable-baselines3", {"data": b"\xff\x00"}),
    "deep data": ("is no zip of stable-baselines3", {"data": b"[" * 100_000}),
    "data is a list": ("holds no finite weights", {"data": b"[]"}),
    "a list": ("holds no finite weights", {"weights": repacked(lambda w: [*w.values()])}),
    "numbers": ("holds no finite weights", {"weights": repacked(lambda w: dict.fromkeys(w, 1.0))}),
    "names": ("holds no finite weights", {"weights": repacked(lambda w: dict(enumerate(w.values())))}),
    "huge": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: HUGE})}),
    "not a number": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: w[NAMES] * torch.nan})}),
    "scalar": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: torch.ones(())})}),
    "vector": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: torch.ones(3)})}),
    "sparse": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: w[NAMES].to_sparse()})}),
    "complex": ("holds no finite weights", {"weights": repacked(lambda w: w | {NAMES: w[NAMES] * 1j})}),
    "empty": ("no actor-critic policy; give one of PPO", {"weights": repacked(lambda w: {})}),
    "other names": ("its network reads 3 numbers", {"weights": repacked(lambda w: w | {"more": torch.ones(2)})}),
    "an odd width": ("its network reads 3 numbers", {"weights": repacked(lambda w: w | {"log_std": torch.ones(2)})}),
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("sealed")
def test_a_hostile_zip_is_refused_in_one_line(fault: str, tmp_path: Path, capsys: Any) -> None:
    message, entries = HOSTILE[fault]
    path = doctored(saved(make(environments()), tmp_path), **entries)
    with pytest.raises(DataError, match=message) as refused:
        read_teacher(path, PLAIN, spaces.Discrete(3))
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert "unpickled" not in capsys.readouterr().out


def test_a_zip_that_says_it_is_larger_than_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(make(environments()), tmp_path)
    monkeypatch.setattr("selfdistill.control.teachers.LARGEST", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(DataError, match="it is too large"):
        read_teacher(path, PLAIN, THREE)


def facts(**changes: Any) -> Callable[[bytes], bytes]:
    """A ``data`` with other facts of the policy."""
    return lambda content: json.dumps(json.loads(content) | {"policy_kwargs": changes}).encode()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("activation function Own is none of Tanh", {"activation_fn": "<class 'mine.Own'>"}),
        (
            r"activation function functools.partial\(.* is none of",
            {"activation_fn": "functools.partial(<class 'X'>, 1)"},
        ),
        ("features extractor Mine is of its own; give the model", {"features_extractor_class": "<class 'a.Mine'>"}),
    ],
)
def test_a_zip_with_code_of_its_own_is_refused(message: str, change: dict[str, Any], tmp_path: Path) -> None:
    path = doctored(saved(make(environments()), tmp_path), data=facts(**change))
    with pytest.raises(DataError, match=message):
        read_teacher(path, PLAIN, spaces.Discrete(3))


def test_a_zip_with_an_activation_function_of_its_own_as_sb3_writes_it(tmp_path: Path) -> None:
    path = saved(make(environments(), policy_kwargs={"activation_fn": Own}), tmp_path)
    with pytest.raises(DataError, match="activation function Own is none of Tanh"):
        read_teacher(path, PLAIN, spaces.Discrete(3))


THREE = spaces.Discrete(3)
plain, keyed = lambda: make(environments()), lambda: make(environments(KEYS))
flat = lambda: make(environments(spaces.Box(-1.0, 1.0, (6,))))
off_policy = lambda: DQN("MlpPolicy", environments(), device="cpu")
recurrent = lambda: make(environments(), RecurrentPPO, policy="MlpLstmPolicy")
MISFITS: dict[str, tuple[str, Callable[[], Any], Any, Any]] = {
    "observations": (r"reads 3 numbers and chooses by 3.*shows \(5,\).*wrap", plain, spaces.Box(0, 1, (5,)), THREE),
    "actions": (r"chooses by 3; .*acts in Discrete\(2\)", plain, PLAIN, spaces.Discrete(2)),
    "kind of actions": (r"acts in Box", plain, PLAIN, spaces.Box(-1.0, 1.0, (3,))),
    "keys": ("reads 10 numbers of the keys frames, place, state", keyed, PLAIN, THREE),
    "equal width": ("reads 10 numbers of the keys", keyed, spaces.Box(-1, 1, (10,)), THREE),
    "flat for keys": ("reads 6 numbers and", flat, spaces.Dict({"a": PLAIN, "b": PLAIN}), THREE),
    "q-values": ("no actor-critic policy", off_policy, PLAIN, THREE),
    "recurrent": ("recurrent policy, which cannot", recurrent, PLAIN, THREE),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_teacher_of_another_world_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    message, build, space, actions = MISFITS[kind]
    path = saved(build(), tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        read_teacher(path, space, actions)
    assert "\n" not in str(refused.value)


def test_a_teacher_of_nan_is_refused() -> None:
    model = make(environments())
    with torch.no_grad():
        model.policy.action_net.bias.fill_(torch.nan)

    class Nan(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.full((len(rows), 3), torch.nan)

    for source in (model, Nan()):
        with pytest.raises(DataError, match="nan"):
            read_teacher(source, PLAIN, THREE)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps({}))
    (tmp_path / "text.zip").write_text("words")
    (tmp_path / "folder").mkdir()
    for source, message in (
        (tmp_path / "vecnormalize.pkl", "is a pickle, which is never read; export .*export_normaliser"),
        (tmp_path / "text.zip", "is no zip of stable-baselines3"),
        (tmp_path / "none.zip", "does not exist; give an SB3 zip"),
        (tmp_path / "folder", "holds no policy"),
        (None, "not a NoneType"),
    ):
        with pytest.raises((DataError, CheckpointError), match=message):
            read_teacher(source, PLAIN, spaces.Discrete(3))


def test_what_only_the_teacher_sees_is_named_by_keys() -> None:
    assert hidden_keys("state, place", KEYS) == ("state", "place")
    assert hidden_keys(["state", "place"], KEYS) == ("state", "place")
    assert hidden_keys(None, PLAIN) == ()
    both = spaces.Dict({"observation": PLAIN, "teacher": spaces.Box(-1.0, 1.0, (5,))})
    for wrapper in (gymnasium.ObservationWrapper, "own:Full"):
        assert hidden_keys(wrapper, both) == ("teacher",)
        for space in (PLAIN, KEYS):
            with pytest.raises(DataError, match=r"is the key 'teacher' of a Dict .*: wrap it so"):
                hidden_keys(wrapper, space)
    with pytest.raises(DataError, match="no key of the observation is left for the student; hide fewer"):
        hidden_keys("state,place,frames", KEYS)
    with pytest.raises(DataError, match="has no key 'Hidden'; it has 'frames', 'place', 'state'"):
        hidden_keys("Hidden", KEYS)
