/* Functions of the Python module. */
#ifndef DUMPFS_FUNCTIONS_H
#define DUMPFS_FUNCTIONS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#define MOST_PAGE_SHIFT 16

PyObject *python_has_codec(PyObject *module, PyObject *args);
PyObject *python_encode(PyObject *module, PyObject *args);

#endif
