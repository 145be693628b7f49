"""Is a table learnt by a learner or by a network, and if by a learner, by which one and in what way?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import threads
from ..errors import DataError, RecipeError
from ..expressions import called, nearest
from ..methods import recipes
from ..request import Request
from ..tasks import frames, sources, tabular
from ..tasks.frames import Frame
from . import kinds
from .ways import Way, read_way, ways

BOOSTING = "boosting"  # what a table is learnt by where nothing is asked for
NETWORKS = "mlp"  # what to give for the other side
_OURS = ("audit",)  # the settings of a training that learners have too


def for_learners(request: Request) -> bool:
    """Does the request ask for a learner of scikit-learn? Tables do, unless a network or its recipe is named.

    Raises:
        RecipeError, DataError: it asks for both, or for a learner on images.
    """
    if request.text is not None:  # read by an encoder
        return False
    table = tabular.is_table(request.data) or request.data in sources.TABLES
    model, method = request.model, None if request.method is None else called(request.method)
    learner = model is not None and (kinds.named(model) or kinds.foreign(model) is not None)
    known = method is not None and method in ways()
    ours = known and method not in recipes()  # plain() is both
    if table and method is not None and not known and method not in recipes():
        close = nearest(method, [*ways(), *recipes()])
        raise RecipeError(
            f"unknown method {method!r}; {f'nearest: {close}. ' if close else ''}`selfdistill methods` lists them"
        )
    if not table:
        if learner or ours:
            raise DataError(
                f"{request.data}: {model if learner else request.method} learns tables, and this is none; give a CSV "
                "or Parquet file, or leave it out"
            )
        return False
    if learner and method is not None and not known:
        raise RecipeError(
            f"{method}() trains networks and {model} is a learner of scikit-learn; give one of "
            f"{', '.join(f'{name}()' for name in ways())}, or --model {NETWORKS}"
        )
    if ours and model is not None and not learner:
        raise RecipeError(
            f"{method}() is for learners of scikit-learn and {model} is a network; give one of "
            f"{', '.join(kinds.LEARNERS)} as --model, or a recipe for networks"
        )
    return learner or (model is None and (method is None or ours))


@dataclass
class Choice:
    """A request with every choice made: the table, the learner, its peers, and how they teach."""

    data: Frame
    way: Way
    expression: str
    build: str  # the learner's expression
    settings: dict[str, Any]

    @property
    def classify(self) -> bool:
        return self.data.task == "classify"

    def threads(self) -> int:
        """How many threads learn the table."""
        return threads.of_table(len(self.data.y), self.data.sample.shape[1])

    def learner(self, seed: int) -> Any:
        """The learner alone, seeded."""
        from numpy.random import RandomState

        from ..estimators.weights import seeded

        return seeded(self._learner(), RandomState(seed))

    def _learner(self) -> Any:
        return kinds.learner(self.build, self.classify, self.data.sample, len(self.data.labelled))

    def peers(self) -> list[Any]:
        """The usual peers for such a table."""
        from ..estimators.usual import usual_peers

        return usual_peers(self.data.sample, classify=self.classify)

    def estimator(self, seed: int, **more: Any) -> Any:
        """The learner that teaches itself, not fitted."""
        if self.way.name == "plain":
            return self.learner(seed)
        options = {"random_state": seed, "audit": self.settings["audit"], "audit_folds": self.settings["audit_folds"]}
        return self.way.make(self._learner(), self.peers(), self.classify, **options, **more)


def choose(request: Request) -> Choice:
    """Load the table and fill in what the request leaves open.

    Raises:
        DataError: the table, or an option that only networks have.
        RecipeError: the learner or the way does not fit the task.
    """
    _refuse_network_options(request)
    data = frames.load(
        request.data, target=request.target, unlabelled=request.unlabelled, labels=request.labels,
        label_noise=request.label_noise, seed=request.seed,
    )  # fmt: skip
    expression = request.method or _usual(data)
    settings = {"seed": request.seed, "audit": "safe", "audit_folds": request.audit_folds or "auto"}
    found = Choice(
        data, read_way(expression), expression, request.model or BOOSTING, {**settings, **dict(request.training)}
    )
    if not len(data.unlabelled) and found.way.name in ("peer_taught", "self_trained"):
        raise DataError(f"{expression} learns from unlabelled rows and {data.name} has none; give --labels N or "
                        "--unlabelled PATH, or take self_distilled()")  # fmt: skip
    found.estimator(request.seed)  # what does not fit says so before anything is trained
    return found


def _usual(data: Frame) -> str:
    """Boosting with peers: they label the unlabelled rows, where there are some, and else correct the labels."""
    if not len(data.unlabelled):
        return "self_distilled()"
    return "peer_taught()" if data.task == "regress" else "self_trained(peers='usual')"


def _refuse_network_options(request: Request) -> None:
    names = ("steps", "epochs", "batch_size", "image_size", "augment", "init", "targets")
    asked = {name: getattr(request, name) for name in names}
    asked |= {name: value for name, value in request.training if name not in _OURS}
    for name, value in asked.items():
        if value is not None:
            option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            raise DataError(
                f"{option} is for networks, and {request.data} is learnt by "
                f"{request.model or BOOSTING}; leave it out, or give --model {NETWORKS}"
            )


def default_way(request: Request) -> str:
    """The way that `run` would choose for the table."""
    return choose(replace(request, method=None)).expression
