// One look at the arrays of many states: whether each is the object that it was.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace puzzlelib_rmsprop {

// Of a dict of dicts and a list: whether the values of the inner dicts, one after the other, are the list's objects.
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
