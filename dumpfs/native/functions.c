/* See functions.h. */
#include "functions.h"
#include "codecs.h"
#include "encode.h"

PyObject *python_has_codec(PyObject *module, PyObject *args)
{
	unsigned int flag;

	(void)module;
	if (!PyArg_ParseTuple(args, "I", &flag))
		return NULL;
	return PyBool_FromLong(codec_find(flag) != NULL);
}

#define BLOCK 4096 /* what a disk fetches begins at a multiple of this (writer/uncached.py) */

static int encoding; /* some thread is: what the codecs keep between pages is the process's */

static PyObject *encode_buffers(const struct codec *codec, struct batch *batch)
{
	size_t room = batch->count * batch->page_size + codec->bound(batch->page_size);
	PyObject *blob = PyBytes_FromStringAndSize(NULL, room + BLOCK);
	PyObject *sizes = PyBytes_FromStringAndSize(NULL, batch->count * sizeof *batch->sizes);
	PyObject *flags = PyBytes_FromStringAndSize(NULL, batch->count * sizeof *batch->flags);
	PyObject *view = NULL, *used = NULL, *result = NULL;
	size_t start, size;

	if (blob && sizes && flags && (view = PyMemoryView_FromObject(blob))) {
		batch->out = (uint8_t *)PyBytes_AsString(blob); /* nobody else knows the three yet */
		start = -(uintptr_t)batch->out % BLOCK;
		batch->out += start;
		batch->sizes = (uint32_t *)PyBytes_AsString(sizes);
		batch->flags = (uint32_t *)PyBytes_AsString(flags);
		Py_BEGIN_ALLOW_THREADS /* another thread may be writing what was encoded before */
		size = encode_batch(codec, batch);
		Py_END_ALLOW_THREADS
		used = PySequence_GetSlice(view, start, start + size); /* a copy would cost as much as the zero test */
	}
	if (used)
		result = PyTuple_Pack(3, used, sizes, flags);
	Py_XDECREF(used);
	Py_XDECREF(view);
	Py_XDECREF(blob);
	Py_XDECREF(sizes);
	Py_XDECREF(flags);
	return result;
}

PyObject *python_encode(PyObject *module, PyObject *args)
{
	struct batch batch = { 0 };
	const struct codec *codec;
	PyObject *result = NULL;
	Py_buffer data, kinds;
	Py_ssize_t page_size;
	unsigned int flag;

	(void)module;
	if (!PyArg_ParseTuple(args, "Iy*nw*b", &flag, &data, &page_size, &kinds, &batch.zero_kind))
		return NULL;
	codec = codec_find(flag);
	if (encoding) {
		PyErr_SetString(PyExc_RuntimeError, "another thread is encoding");
	} else if (!codec) {
		PyErr_Format(PyExc_ValueError, "there is no library for the codec with flag %#x", flag);
	} else if (page_size < 64 || page_size > 1 << MOST_PAGE_SHIFT || data.len % page_size ||
		   data.len / page_size != kinds.len) {
		PyErr_SetString(PyExc_ValueError, "data are not as many pages as there are kinds");
	} else {
		batch.data = data.buf;
		batch.page_size = page_size;
		batch.count = kinds.len;
		batch.kinds = kinds.buf;
		encoding = 1;
		result = encode_buffers(codec, &batch);
		encoding = 0;
	}
	PyBuffer_Release(&data);
	PyBuffer_Release(&kinds);
	return result;
}
