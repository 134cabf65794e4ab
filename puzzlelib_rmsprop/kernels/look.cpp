// Checks whether the arrays of many states are still the same objects.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace puzzlelib_rmsprop {

// Takes a dict of dicts and a list. Returns whether the values of the inner dicts, in order, are the objects of the list.
PyObject *same_arrays(PyObject *, PyObject *arguments)
{
    PyObject *states, *arrays, *key, *state, *array;
    if (!PyArg_ParseTuple(arguments, "O!O!", &PyDict_Type, &states, &PyList_Type, &arrays))
        return nullptr;
    const Py_ssize_t size = PyList_Size(arrays);
    Py_ssize_t count = 0, at = 0;
    while (PyDict_Next(states, &at, &key, &state)) {
        if (!PyDict_Check(state))
            Py_RETURN_FALSE;
        Py_ssize_t within = 0;
        while (PyDict_Next(state, &within, &key, &array))
            if (count == size || PyList_GetItem(arrays, count++) != array)
                Py_RETURN_FALSE;
    }
    return PyBool_FromLong(count == size);
}

}  // namespace puzzlelib_rmsprop
