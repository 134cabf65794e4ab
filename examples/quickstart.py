"""The example of RMSPropGraves from PuzzleLib's documentation; only the imports and the first line printed differ."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, gpuarray
from puzzlelib_rmsprop.nets import MSE, Activation, Linear, Sequential, relu

np.random.seed(0)
net = Sequential().append(Linear(128, 64)).append(Activation(relu)).append(Linear(64, 1))
loss = MSE()

print("Training a net with two linear layers to map 16 random vectors to 16 numbers")
data = gpuarray.to_gpu(np.random.randn(16, 128).astype(np.float32))
target = gpuarray.to_gpu(np.random.randn(16, 1).astype(np.float32))
optimizer = RMSPropGraves(learnRate=0.001)
optimizer.setupOn(net, useGlobalState=True)
for i in range(100):
    predictions = net(data)
    error, grad = loss(predictions, target)
    optimizer.zeroGradParams()
    net.backward(grad)
    optimizer.update()
    if (i + 1) % 5 == 0:
        print("Iteration #%d error: %s" % (i + 1, error))
