"""A checkpoint policy for networks: what the backward pass keeps, and what it computes again."""

from __future__ import annotations

from typing import Any

import jax

from bnjax.core._xla import STATISTICS


def save_norm_statistics(primitive: Any, *args: Any, **params: Any) -> bool:
    """A policy for ``jax.checkpoint``: of what is inside, keep the statistics of the norms alone.

    Convolution, norm, activation: plain autodiff keeps two arrays of activation size for each such
    block, the input of the norm and the output of the activation (which the next convolution
    needs). Cut the network before the norms instead of after the activations, and wrap each block
    of norm, activation, convolution in ``jax.checkpoint`` with this policy: kept are the argument
    of the block, which is the norm's input, and the norm's vectors. The backward pass repeats
    normalisation and activation, both elementwise, and no convolution and no reduction. That is
    half the activation memory for one more elementwise pass.

    A residual network keeps its stream whatever is cut beside it; there a whole block in one
    ``jax.checkpoint`` (in Flax ``nn.remat(Block, policy=bnjax.save_norm_statistics)``) saves more:
    its convolutions are repeated, but no statistics. Temporary memory and bytes moved, relative to
    the same network without a checkpoint, bfloat16, forward and backward, as compiled for an H100
    and a TPU v5e:

    ==========================================================  ======  =====  ======  =====
    network, and what stands in one ``jax.checkpoint``          H100           TPU
                                                                memory  bytes  memory  bytes
    ==========================================================  ======  =====  ======  =====
    16 convolutions of width 256, norm-activation-convolution     0.55   1.08    1.12   0.86
    the same under ``lax.scan``                                   0.47   0.84    0.40   0.67
    8 residual blocks of two such, norm-activation-convolution    0.55   1.08    1.06   0.77
    the same, a residual block                                    0.37   1.15    0.50   0.77
    ResNet-50, norm-activation-convolution                        0.85   1.02    0.97   0.99
    ResNet-50, a residual block                                   0.39   1.14    0.43   1.17
    the same without the policy                                   0.39   1.20    0.45   1.25
    the same with Flax's batch norm, without the policy           0.39   1.21    0.42   1.14
    ==========================================================  ======  =====  ======  =====

    ``python -m experiments benchmark checkpoint`` counts it again, on a machine that has neither.

    On TPU a straight program has no memory to gain from single blocks of norm, activation and
    convolution: XLA computes norm and activation inside the convolutions that read them, forward
    and backward, and keeps one array each already. Under ``lax.scan`` over blocks (with
    ``prevent_cse=False``) the saving is certain everywhere: autodiff stacks all that it keeps, on
    TPU the input of the norm, the output of the activation and where that is positive. XLA on CPU
    saves nothing in a straight program: it drops the barriers that delay the repetition, and merges
    it with the first computation.

    The statistics carry the name ``"bnjax.statistics"``; combine with other policies by
    ``jax.checkpoint_policies.save_from_both_policies``.

    Args:
      primitive, args, params: as JAX calls every policy.

    Returns:
      Whether the output of ``primitive`` is kept.

    Example:
      >>> import jax, jax.numpy as jnp, bnjax
      >>> def block(x, kernel):
      ...     stats = bnjax.init_batch_stats(4)
      ...     y, _ = bnjax.batch_norm(x, None, None, stats, train=True)
      ...     return jax.nn.relu(y) @ kernel, None
      >>> lean = jax.checkpoint(block, policy=bnjax.save_norm_statistics, prevent_cse=False)
      >>> kernels, x = jnp.ones((3, 4, 4)), jax.random.normal(jax.random.key(0), (8, 4))
      >>> loss = lambda kernels: jax.lax.scan(lean, x, kernels)[0].sum()
      >>> print(jax.grad(loss)(kernels).shape)
      (3, 4, 4)

    Source: Rota Bulò, Porzi & Kontschieder (2018), *In-Place Activated BatchNorm*, §3. PyTorch
    needs a package of CUDA kernels for it, and an invertible activation; here any will do. Flax's
    statistics have no name, so a policy repeats its reductions.
    """
    return _policy(primitive, *args, **params)


_policy = jax.checkpoint_policies.save_only_these_names(STATISTICS)
