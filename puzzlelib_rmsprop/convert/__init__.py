"""The state of other libraries' RMSProp, taken over by an optimizer that is set up, and given back.

============  ==========================  =========================================================================
here          there                       what to know
============  ==========================  =========================================================================
``mg``        the mean of the gradients   with the sign changed, unless the optimizer was made with ``gradOfLoss=True``
``variance``  the mean of their squares   from there ``max(square - mean*mean, 0)``, to there ``variance + mg*mg``
``delta``     the momentum                Chainer and nnabla: the same. PyTorch: ``-lr * momentum_buffer``
============  ==========================  =========================================================================

The variance and the mean square are made from each other in float64 and rounded once. Where a gradient hardly varied, the
mean square has few digits of the variance to give; the steps that follow bring the others.

**PyTorch** (``torch.optim.RMSprop(centered=True)``) has its epsilon outside of the root. The epsilon here becomes the
square of its own: the same step where the variance is 0, one up to 1.42 times as large where the deviation is about eps, and
the same to within eps/deviation where it is far above. Its buffer has no learning rate in it, so a buffer is converted with
the rate of today; a later change of the rate acts on the whole buffer there, but only on new steps here. Weight decay and
``maximize`` are no state and stay with you. The state of a 16-bit parameter has 16 bits there, which rounds ours.

**Chainer** (``RMSpropGraves``) and **nnabla** (``RMSpropGraves``) have the rule that is here, with the mean square in place
of the variance: training goes on as if nothing had happened, up to rounding. Their files hold no hyper-parameters: set
those yourself.

Layers may keep their weights transposed (Chainer's and PyTorch's ``Linear`` do): name such variables in ``transposed``.

Nothing here imports these libraries.
"""

from .chainer_nnabla import fromChainer, fromNnabla, toChainer, toNnabla
from .pytorch import fromTorch, toTorch

__all__ = ["fromChainer", "fromNnabla", "fromTorch", "toChainer", "toNnabla", "toTorch"]
