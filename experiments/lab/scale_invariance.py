"""Before batch norm only the direction of weights counts, their size sets the rate of learning.

Batch norm divides by the standard deviation of what a unit gets, and so by the size of its weights:
f(cW) = f(W), and the gradient is c times smaller (Ioffe & Szegedy 2015, section 3.3). Both are
arithmetic, but for epsilon and rounding. What follows from it is asked here, of a perceptron
trained by gradient descent from the usual weights and from smaller and larger ones, with and
without weight decay of what stands before batch norm:

* A gradient at right angles to the weights makes them longer with every step, so their direction
  turns less and less: by ``effective rate = rate / |w|^2`` for a unit's weights w. Too large a rate
  tunes itself down (Arora et al. 2019).
* Weight decay does not make the function any simpler, it makes w shorter and the effective rate
  larger (van Laarhoven 2017; Hoffer et al. 2018). Where growth and decay meet, with gradients g::

      rate^2 |g|^2 = 2 rate decay |w|^2,   that is   angle a step = sqrt(2 rate decay)

  no matter what is learned, nor where the weights started.

Sizes are root mean squares over the units of all hidden layers; the angle, ``rate |g| / |w|``, is
that of the mini-batches of some hundred steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.histories import first, last
from experiments.common.loop import Examples, Metrics, first_states, variables_of
from experiments.common.metrics import evaluate, gradient, in_training
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    set_ticks,
    stretch_steps,
)
from experiments.common.rates import with_options
from experiments.common.records import Record, per_seed, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, once, training
from experiments.common.verdicts import TIMES, Row, Test, claim, identity

MEMORY = 0.99  # of the mean over steps of the angle's square
SAME_SIZE, SAME_ANGLE = np.log(1.1), np.log(1.2)  # margins, of the size and of the angle
FACTOR = 10.0  # of the two identities
ARITHMETIC = "arithmetic"
SOURCE = "Ioffe & Szegedy 2015, section 3.3"
LINES = ("--", "-", "-.")


@dataclass(frozen=True)
class InvarianceSettings(Settings):
    """Settings of all runs."""

    hidden: tuple[int, ...] = (64, 64, 64)
    starts: tuple[float, ...] = (0.3, 1.0, 3.0)  # times the usual first weights
    decays: tuple[float, ...] = (0.003, 0.01, 0.03)

    @property
    def decay(self) -> float:
        """The one that all starts are tried with."""
        return self.decays[1]


PRESETS = {
    "quick": InvarianceSettings(steps=2000, learning_rate=0.3, eval_every=50),
    "long": InvarianceSettings(
        data="mnist", steps=6000, learning_rate=0.3, eval_every=100, hidden=(100, 100, 100)
    ),
}


class Angles(NamedTuple):
    """State of `observe`: by layer, the mean over steps of |g|^2 / |w|^2, (units,)."""

    squares: Any


def trials(settings: InvarianceSettings, data: Dataset) -> list[Trial]:
    """The two identities, and a trial a start and decay."""
    he = (2 / settings.hidden[0]) ** 0.5
    model = MLP(settings.hidden, batch_norm=True, activation=nn.relu, init_std=he)
    pairs = [(start, decay) for decay in (0.0, settings.decay) for start in settings.starts]
    pairs += [(1.0, decay) for decay in settings.decays if decay != settings.decay]
    made = [once(ARITHMETIC, partial(_arithmetic, model, settings, data))]
    for start, decay in pairs:
        first_state = partial(prepare, start, settings.learning_rate, decay)
        options = {"evaluate": sizes, "prepare": first_state}
        made.append(training(name(start, decay), model, OPTIMIZER, data, settings, **options))
    return made


def name(start: float, decay: float) -> str:
    """Such as "weights ×0.3, decay 0.01"."""
    return f"weights ×{start:g}, decay {decay:g}"


def hidden_kernels(params: Any) -> dict[str, jax.Array]:
    """The weights that batch norm follows: of all layers but the last, which has a bias."""
    return {
        key: value["kernel"]
        for key, value in params.items()
        if "kernel" in value and "bias" not in value
    }


def observe() -> optax.GradientTransformation:
    """Changes no gradient; its state tells how large those of each hidden unit are beside it."""

    def init(params: Any) -> Angles:
        kernels = hidden_kernels(params)
        return Angles(jax.tree.map(lambda kernel: jnp.zeros(kernel.shape[1]), kernels))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def square(before: jax.Array, g: jax.Array, w: jax.Array) -> jax.Array:
            now = jnp.sum(g**2, 0) / jnp.sum(w**2, 0)
            return MEMORY * before + (1 - MEMORY) * now

        kernels = hidden_kernels(updates), hidden_kernels(params)
        return updates, Angles(jax.tree.map(square, state.squares, *kernels))

    return optax.GradientTransformation(init, update)


def _before_norm(params: Any) -> Any:
    kernels = hidden_kernels(params)
    return {key: jax.tree.map(lambda _, key=key: key in kernels, v) for key, v in params.items()}


@partial(optax.inject_hyperparams, hyperparam_dtype=jnp.float32)
def _decaying(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, _before_norm)
    return optax.chain(observe(), decay, optax.sgd(learning_rate))


OPTIMIZER = _decaying(learning_rate=0.0, weight_decay=0.0)  # one object, one compiled program


def prepare(start: float, rate: float, decay: float, states: TrainState) -> TrainState:
    """Multiplies the weights before batch norm by `start`, and sets rate and decay."""
    kernels = hidden_kernels(states.params)
    larger = {k: states.params[k] | {"kernel": start * v} for k, v in kernels.items()}
    states = states.replace(params={**states.params, **larger})
    return with_options(states, learning_rate=rate, weight_decay=decay)


def sizes(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and over all hidden units the size, and gradient over size."""
    columns = [jnp.sum(kernel**2, 0) for kernel in hidden_kernels(state.params).values()]
    turned = jnp.concatenate(list(optax.tree.get(state.opt_state, "squares").values()))
    unbiased = 1 - MEMORY ** jnp.maximum(state.step, 1)
    return evaluate(state, test, model=model) | {
        "size": jnp.sqrt(jnp.mean(jnp.concatenate(columns))),
        "gradient_to_size": jnp.sqrt(jnp.mean(turned) / unbiased),
    }


def _arithmetic(model: nn.Module, settings: InvarianceSettings, data: Dataset) -> Iterator[Record]:
    """How far output and gradient are from what arithmetic says, relative to their size."""
    images, labels = (jnp.asarray(array[: settings.batch_size]) for array in data.train)

    @jax.jit
    @jax.vmap
    def both(state: TrainState) -> tuple[Any, Any]:
        logits, _ = in_training(model, variables_of(state), images)
        return logits, hidden_kernels(gradient(state, (images, labels), model=model))

    states = first_states(model, OPTIMIZER, settings.seeds, images.shape[1])
    outputs, gradients = both(states)
    scaled_outputs, scaled_gradients = both(prepare(FACTOR, 0.0, 0.0, states))
    scaled_gradients = jax.tree.map(lambda g: FACTOR * g, scaled_gradients)
    errors = {
        "output_error": relative_error(outputs, scaled_outputs),
        "gradient_error": relative_error(gradients, scaled_gradients),
    }
    yield from per_seed(0, ARITHMETIC, errors)


def relative_error(right: Any, other: Any) -> np.ndarray:
    """Norm of the difference over the norm, of trees with the seeds on axis 0, (seeds,)."""

    def squares(tree: Any) -> np.ndarray:
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        return np.sum([(leaf**2).reshape(len(leaf), -1).sum(1) for leaf in leaves], 0)

    return np.sqrt(squares(jax.tree.map(jnp.subtract, right, other)) / squares(right))


def angle(records: Sequence[Record], settings: InvarianceSettings, decay: float) -> np.ndarray:
    """By how much a step turns the weights at the end of training, (seeds,)."""
    turned = last(records, name(1.0, decay), "gradient_to_size")
    return settings.learning_rate * turned


def judge(records: Sequence[Record], settings: InvarianceSettings) -> list[Row]:
    """The rows of the closing table."""
    decay, rate = settings.decay, settings.learning_rate
    small, large = settings.starts[0], settings.starts[-1]
    free, held = (
        {start: np.log(last(records, name(start, d), "size")) for start in settings.starts}
        for d in (0.0, decay)
    )
    free_apart, held_apart = (runs[large] - runs[small] for runs in (free, held))
    effective = {d: rate * np.exp(-2 * runs[1.0].mean()) for d, runs in ((decay, held), (0, free))}
    with np.errstate(divide="ignore", invalid="ignore"):
        turned = np.log(angle(records, settings, decay) / (2 * rate * decay) ** 0.5)
    shrunk = 2 * (free[1.0] - held[1.0])
    return [
        claim(
            "decay sets the rate",
            '"regularization has an influence on the scale of weights, and thereby on the '
            'effective learning rate"',
            "van Laarhoven 2017, abstract; Hoffer et al. 2018",
            Test(f"log of the last effective rate, decay {decay:g} / none", shrunk, TIMES),
            found=f"rate / |w|² at the end: {effective[decay]:.2g} with decay, "
            f"{effective[0]:.2g} without",
        ),
        claim(
            "equilibrium",
            "under weight decay the size of weights settles where growth and decay meet",
            "van Laarhoven 2017; Hoffer et al. 2018",
            Test(
                f"log of the last size of weights, from × {large:g} / from × {small:g}",
                held_apart,
                TIMES,
                within=float(SAME_SIZE),
            ),
            Test(
                "log of the angle of a step at the end, less that of sqrt(2 rate decay)",
                turned,
                TIMES,
                within=float(SAME_ANGLE),
            ),
            found=f"{large / small:.3g} times apart at the start, at the end "
            f"{np.exp(free_apart.mean()):.2f} times without decay and with it (then the angle, "
            "beside theory)",
        ),
        claim(
            "growth steadies itself",
            '"larger weights lead to smaller gradients, and Batch Normalization will stabilize '
            'the parameter growth"',
            f"{SOURCE}; Arora et al. 2019",
            Test(
                f"log of sizes from × {large:g} / from × {small:g}, start / end, no decay",
                np.log(large / small) - free_apart,
                TIMES,
            ),
            found="nearer to each other",
        ),
        *_identities(records),
    ]


def _identities(records: Sequence[Record]) -> list[Row]:
    said = {
        f"f({FACTOR:g}W) = f(W)": "the output does not change with the size of the weights",
        f"gradient / {FACTOR:g}": "the gradient is as many times smaller as weights are larger",
    }
    rows = []
    for (short, what), part in zip(said.items(), ("output", "gradient"), strict=True):
        error = first(records, ARITHMETIC, f"{part}_error")
        found = f"relative difference {error.mean():.1e}"
        numbers = {"relative difference": error.tolist()}
        rows.append(identity(short, f"{what}, but for epsilon", found, SOURCE, numbers))
    return rows


def draw(records: Sequence[Record], settings: InvarianceSettings) -> Figure:
    """Sizes without and with decay above; effective rates and angles below."""
    figure = narrow(6.4)
    axes = figure.subplots(2, 2)
    for ax, decay in zip(axes[0], (0.0, settings.decay), strict=True):
        _draw_sizes(ax, records, settings, decay)
    largest = max(ax.get_ylim()[1] for ax in axes[0])
    for ax in axes[0]:
        ax.set_ylim(0.02 * largest, largest)  # the legend goes below
    axes[0, 0].set_ylabel("size of weights (log scale)")
    axes[0, 0].legend(title="weights at first", loc="lower center", ncols=2, fontsize=8.5)
    entitle(axes[0, 0], "no weight decay", "a")
    entitle(axes[0, 1], f"weight decay {settings.decay:g}", "b")
    _draw_rates(axes[1, 0], records, settings)
    _draw_angles(axes[1, 1], records, settings)
    return figure


def _draw_sizes(
    ax: Axes, records: Sequence[Record], settings: InvarianceSettings, decay: float
) -> None:
    looks = zip(settings.starts, (ORANGE, BLUE, GREEN), LINES, strict=True)
    for start, color, line in looks:
        steps, values = series(records, name(start, decay), "size")
        draw_band(ax, steps, values, color, f"×{start:g}", line)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5)), "{x:g}")
    _label_steps(ax, settings)


def _draw_rates(ax: Axes, records: Sequence[Record], settings: InvarianceSettings) -> None:
    decays = (0.0, settings.decays[0], settings.decays[-1])
    for decay, color, line in zip(decays, (ORANGE, BLUE, GREEN), LINES, strict=True):
        steps, values = series(records, name(1.0, decay), "size")
        label = f"decay {decay:g}" if decay else "no decay"
        draw_band(ax, steps, settings.learning_rate / values**2, color, label, line)
    ax.set_yscale("log")
    ax.set_ylim(None, 20 * ax.get_ylim()[1])  # the legend goes above
    set_ticks(ax.yaxis, LogLocator(), "{x:g}")
    ax.set_ylabel("rate / |w|² (log scale)")
    ax.legend(loc="upper left", fontsize=8.5)
    _label_steps(ax, settings)
    entitle(ax, "effective rate", "c")


def _draw_angles(ax: Axes, records: Sequence[Record], settings: InvarianceSettings) -> None:
    """A dot a seed of every decay, and what theory says."""
    theory = [(2 * settings.learning_rate * decay) ** 0.5 for decay in settings.decays]
    for place, decay in enumerate(settings.decays):
        draw_dots(ax, place, angle(records, settings, decay), BLUE, width=0.6)
        ax.hlines(theory[place], place - 0.4, place + 0.4, color=GREY, linestyle=":", linewidth=2)
    ax.plot([], [], ":", color=GREY, linewidth=2, label="√(2 rate decay)")
    ax.set_yscale("log")
    ax.set_ylim(0.3 * min(theory), 4 * max(theory))
    set_ticks(ax.yaxis, FixedLocator((0.01, 0.02, 0.05, 0.1, 0.2)), "{x:g}")
    ax.set_xticks(range(len(theory)), [f"{decay:g}" for decay in settings.decays])
    ax.set_xlabel("weight decay")
    ax.set_ylabel("angle of a step (radians)")
    ax.legend(loc="upper left", fontsize=8.5)
    entitle(ax, "angle at the end", "d")


def _label_steps(ax: Axes, settings: InvarianceSettings) -> None:
    stretch_steps(ax, settings, LogLocator())
    ax.set_xlabel("training step (log scale)")
