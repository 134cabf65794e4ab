"""The CUDA context of gpuarray's arrays. Each test runs in its own process."""

import pytest

from tests.processes import child


@pytest.mark.usefixtures("cuda")
class TestContext:
    def test_the_primary_one_is_made_current_and_popped_at_exit(self):
        out = child("""
            assert "pycuda" not in sys.modules
            array = gpuarray.zeros(3)
            assert type(array).__module__ == "pycuda.gpuarray", "auto"
            import pycuda.driver as driver
            context = driver.Context.get_current()
            gpuarray.zeros(3)
            assert driver.Context.get_current() == context
            assert context.handle == driver.Device(0).retain_primary_context().handle
            print(array.get())
        """)
        assert out == "[0. 0. 0.]\n"

    def test_the_current_one_is_used(self):
        out = child("""
            import pycuda.driver as driver
            driver.init()
            own = driver.Device(0).make_context()
            gpuarray.zeros(3)
            print(driver.Context.get_current() == own)
            own.pop()
        """)
        assert out == "True\n"

    def test_one_that_pycuda_did_not_make(self):
        # as in PyTorch and CuPy: the primary context is made current without PyCUDA
        out = child("""
            import ctypes
            from puzzlelib_rmsprop.kernels.context import driver_library
            library, context = driver_library(), ctypes.c_void_p()
            library.cuInit(0)
            library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
            library.cuCtxSetCurrent(context)
            Config.deviceIdx = 99
            array = gpuarray.zeros(3)
            import pycuda.driver as driver
            print(driver.Context.get_current().handle == context.value)
        """)
        assert out == "True\n"

    def test_a_foreign_one_that_is_not_primary_is_refused(self):
        out = child("""
            import ctypes
            from puzzlelib_rmsprop.kernels.context import driver_library
            import pycuda.driver as driver
            driver.init()
            library = driver_library()
            context = driver.Device(0).make_context()
            handle = context.handle
            context.pop()
            library.cuCtxSetCurrent(ctypes.c_void_p(handle))
            try:
                Config.backend = Config.Backend.cuda
                gpuarray.zeros(3)
            except Exception as error:
                print(type(error).__name__, "neither PyCUDA's nor the primary context of device 0" in str(error))
        """)
        assert out == "DeviceError True\n"

    def test_a_device_that_is_not_there(self):
        out = child("""
            Config.deviceIdx = 99
            try:
                gpuarray.zeros(3)
            except Exception as error:
                print(type(error).__name__, str(error).startswith("Config.deviceIdx must be below"))
        """)
        assert out == "DeviceError True\n"

    def test_threads(self):
        out = child("""
            import threading
            from puzzlelib_rmsprop.nets import Linear
            def work():
                made.append(Linear(2, 3)(gpuarray.zeros((4, 2))).get().shape)
            made = []
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            work()
            print(made)
        """)
        assert out == "[(4, 3), (4, 3), (4, 3), (4, 3)]\n"
