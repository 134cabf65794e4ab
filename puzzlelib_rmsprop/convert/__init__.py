"""Import and export optimizer state of the RMSProp implementations of PyTorch, Chainer and nnabla.

============  ========================  ===========================================================================
here          other library             conversion
============  ========================  ===========================================================================
``mg``        mean gradient             with the opposite sign, unless the optimizer was made with ``gradOfLoss=True``
``variance``  mean squared gradient     import: ``max(square - mean*mean, 0)``; export: ``variance + mg*mg``
``delta``     momentum                  Chainer and nnabla: unchanged. PyTorch: ``-lr * momentum_buffer``
============  ========================  ===========================================================================

The variance and the mean square are computed from each other in float64 and rounded once. If a gradient hardly varied,
the mean square determines only a few digits of the variance; the following steps restore the others.

**PyTorch** (``torch.optim.RMSprop(centered=True)``) adds its epsilon outside the square root. It is imported as its square,
which is added inside the root. The step is then the same if the variance is 0, up to 1.42 times as large if the standard
deviation is about eps, and the same to within eps/deviation if the deviation is much larger. PyTorch's momentum buffer does
not contain the learning rate, so it is converted with the current one. A later change of the learning rate scales the whole
buffer in PyTorch, but only new steps here. Weight decay and ``maximize`` are not part of the state: set them yourself.
PyTorch keeps the state of 16-bit parameters in 16 bits, so an export is rounded.

**Chainer** (``RMSpropGraves``) and **nnabla** (``RMSpropGraves``) use the same rule as this library, with the mean square in
place of the variance: training continues unchanged, up to rounding. Their files contain no hyper-parameters: set them
yourself.

Layers may store their weights transposed, as Chainer's and PyTorch's ``Linear`` do: list these variables in ``transposed``.

None of these libraries is imported.
"""

from .chainer_nnabla import fromChainer, fromNnabla, toChainer, toNnabla
from .pytorch import fromTorch, toTorch

__all__ = ["fromChainer", "fromNnabla", "fromTorch", "toChainer", "toNnabla", "toTorch"]
