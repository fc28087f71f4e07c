/* The Python module dumpfs.native.loops; `loops.pyi` says what is in it. */
#include "functions.h" /* first: Python.h */
#include "loop.h"
#include "pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1 /* to be raised with the one in __init__.py */
#define MOST_EXTENTS (1 << 16)

static PyObject *pages_type;

/* -- Pages ------------------------------------------------------------------------------------------------------- */

struct pages_object {
	PyObject_HEAD
	struct pages pages;
	Py_buffer ranks;
	int has_ranks;
};

static PyObject *pages_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "fd", "bitmap", "stop", "ranks", "table", "count", "page_size", "zeros", "cache", NULL };
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	unsigned long long bitmap, stop, table, count;
	struct pages_object *self;
	Py_ssize_t page_size, cache;
	unsigned shift = 0;
	PyObject *ranks;
	int fd, zeros;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$iKKOKKnpn", names, &fd, &bitmap, &stop, &ranks, &table, &count,
					 &page_size, &zeros, &cache))
		return NULL;
	while (shift < MOST_PAGE_SHIFT && ((Py_ssize_t)1 << shift) < page_size)
		++shift;
	if (page_size != (Py_ssize_t)1 << shift || shift < 9 || cache < 0) {
		PyErr_SetString(PyExc_ValueError, "page_size must be a power of two from 512 to 65536, and cache not negative");
		return NULL;
	}
	if (bitmap > LAST_OFFSET || stop > LAST_OFFSET || table > LAST_OFFSET || count > LAST_OFFSET / DESCRIPTOR_BYTES) {
		PyErr_SetString(PyExc_ValueError, "a place lies beyond any file");
		return NULL;
	}
	self = (struct pages_object *)alloc(type, 0);
	if (!self)
		return NULL;
	if (PyObject_GetBuffer(ranks, &self->ranks, PyBUF_SIMPLE)) {
		Py_DECREF(self);
		return NULL;
	}
	self->has_ranks = 1;
	self->pages.fd = fd;
	self->pages.bitmap = bitmap;
	self->pages.stop = stop;
	self->pages.ranks = self->ranks.buf;
	self->pages.nranks = self->ranks.len / sizeof *self->pages.ranks;
	self->pages.table = table;
	self->pages.count = count;
	self->pages.page_size = page_size;
	self->pages.shift = shift;
	self->pages.zeros = zeros;
	if (pages_prepare(&self->pages, cache)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return (PyObject *)self;
}

static void pages_dealloc(PyObject *object)
{
	struct pages_object *self = (struct pages_object *)object;
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	pages_release(&self->pages);
	if (self->has_ranks)
		PyBuffer_Release(&self->ranks);
	release(object);
	Py_DECREF(type);
}

static PyObject *pages_read_method(PyObject *object, PyObject *args)
{
	struct pages *pages = &((struct pages_object *)object)->pages;
	unsigned long long address;
	Py_ssize_t size, done = 0;
	PyObject *data;

	if (!PyArg_ParseTuple(args, "Kn", &address, &size))
		return NULL;
	if (size <= 0)
		Py_RETURN_NONE;
	data = PyBytes_FromStringAndSize(NULL, size);
	if (!data)
		return NULL;
	while (done < size) {
		size_t part = (size_t)(size - done) < MOST_BYTES ? (size_t)(size - done) : MOST_BYTES;
		char *to = PyBytes_AsString(data) + done;
		const void *found = pages_read(pages, address + done, part, (uint8_t *)to);

		if (!found) {
			Py_DECREF(data);
			Py_RETURN_NONE;
		}
		if (found != to)
			memcpy(to, found, part);
		done += part;
	}
	return data;
}

static PyObject *pages_used_method(PyObject *object, PyObject *unused)
{
	(void)unused;
	return PyLong_FromSize_t(pages_used(&((struct pages_object *)object)->pages));
}

static PyMethodDef pages_methods[] = {
	{ "read", pages_read_method, METH_VARARGS, "Bytes of physical memory, or None." },
	{ "used", pages_used_method, METH_NOARGS, "Bytes of decoded pages that are kept." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot pages_slots[] = {
	{ Py_tp_doc, "Pages of a plain kdump-compressed file." },
	{ Py_tp_new, pages_new },
	{ Py_tp_dealloc, pages_dealloc },
	{ Py_tp_methods, pages_methods },
	{ 0, NULL },
};

static PyType_Spec pages_spec = {
	.name = "dumpfs.native.loops.Pages",
	.basicsize = sizeof(struct pages_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = pages_slots,
};

/* -- Loop -------------------------------------------------------------------------------------------------------- */

struct loop_object {
	PyObject_HEAD
	struct loop loop;
	Py_buffer counters;
	int has_counters;
	PyObject *owners; /* the `Pages` of its files */
};

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "device", "room", "counters", "reads", "bytes", "hits", "misses", NULL };
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	Py_ssize_t room, places[4], words;
	struct loop_object *self;
	PyObject *counters;
	uint64_t *row;
	size_t i;
	int device;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$inOnnnn", names, &device, &room, &counters, &places[0],
					 &places[1], &places[2], &places[3]))
		return NULL;
	self = (struct loop_object *)alloc(type, 0);
	if (!self)
		return NULL;
	self->owners = PyList_New(0);
	if (!self->owners || PyObject_GetBuffer(counters, &self->counters, PyBUF_WRITABLE)) {
		Py_DECREF(self);
		return NULL;
	}
	self->has_counters = 1;
	words = self->counters.len / sizeof *row;
	for (i = 0; i < 4; ++i)
		if (places[i] < 0 || places[i] >= words)
			break;
	if (i < 4 || room < 8192) {
		Py_DECREF(self);
		PyErr_SetString(PyExc_ValueError, "a counter lies outside of its row, or the room is below 8192 bytes");
		return NULL;
	}
	row = self->counters.buf;
	self->loop.device = device;
	self->loop.reads = row + places[0];
	self->loop.bytes = row + places[1];
	self->loop.hits = row + places[2];
	self->loop.misses = row + places[3];
	if (loop_prepare(&self->loop, room)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return (PyObject *)self;
}

static void loop_dealloc(PyObject *object)
{
	struct loop_object *self = (struct loop_object *)object;
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	loop_release(&self->loop);
	if (self->has_counters)
		PyBuffer_Release(&self->counters);
	Py_XDECREF(self->owners);
	release(object);
	Py_DECREF(type);
}

/* Fill `extents` from a sequence of (offset, size, address): 0, or -1 with an exception. */
static int take_extents(struct extent *extents, PyObject *given, Py_ssize_t count)
{
	Py_ssize_t i;

	for (i = 0; i < count; ++i) {
		unsigned long long offset, size, address;
		PyObject *item = PySequence_GetItem(given, i);
		int good = item && PyArg_ParseTuple(item, "KKK", &offset, &size, &address);

		Py_XDECREF(item);
		if (!good)
			return -1;
		if (offset > LAST_OFFSET || address > LAST_OFFSET || size > LAST_OFFSET) {
			PyErr_SetString(PyExc_ValueError, "an extent lies beyond any file or memory");
			return -1;
		}
		if (i && (offset < extents[i - 1].offset || offset - extents[i - 1].offset < extents[i - 1].size)) {
			PyErr_SetString(PyExc_ValueError, "extents must ascend and not overlap");
			return -1;
		}
		extents[i].offset = offset;
		extents[i].size = size;
		extents[i].address = address;
	}
	return 0;
}

static PyObject *loop_add(PyObject *object, PyObject *args)
{
	struct loop_object *self = (struct loop_object *)object;
	PyObject *pages, *extents;
	unsigned long long handle;
	struct file *files, *file;
	Py_ssize_t count;

	if (!PyArg_ParseTuple(args, "KO!O", &handle, (PyTypeObject *)pages_type, &pages, &extents))
		return NULL;
	count = PySequence_Size(extents);
	if (count < 0)
		return NULL;
	if (!count || count > MOST_EXTENTS) {
		PyErr_SetString(PyExc_ValueError, "no extents, or too many");
		return NULL;
	}
	files = realloc(self->loop.files, (self->loop.count + 1) * sizeof *files);
	if (!files)
		return PyErr_NoMemory();
	self->loop.files = files;
	file = &files[self->loop.count];
	file->extents = malloc(count * sizeof *file->extents);
	if (!file->extents)
		return PyErr_NoMemory();
	if (take_extents(file->extents, extents, count) || PyList_Append(self->owners, pages)) {
		free(file->extents);
		return NULL;
	}
	file->handle = handle;
	file->pages = &((struct pages_object *)pages)->pages;
	file->count = count;
	++self->loop.count;
	Py_RETURN_NONE;
}

static PyObject *loop_next_method(PyObject *object, PyObject *args)
{
	struct loop *loop = &((struct loop_object *)object)->loop;
	int polite;
	long got;

	if (!PyArg_ParseTuple(args, "p", &polite))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	got = loop_next(loop, polite);
	Py_END_ALLOW_THREADS
	if (got < 0) {
		errno = -got;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	if (PyErr_CheckSignals())
		return NULL;
	if (!got)
		Py_RETURN_NONE;
	return PyBytes_FromStringAndSize((const char *)loop->request, got);
}

static PyObject *loop_linger(PyObject *object, PyObject *unused)
{
	(void)unused;
	((struct loop_object *)object)->loop.linger = 1;
	Py_RETURN_NONE;
}

static PyMethodDef loop_methods[] = {
	{ "add", loop_add, METH_VARARGS, "Answer reads of a file from now on." },
	{ "next", loop_next_method, METH_VARARGS, "The next request that is not answered here." },
	{ "linger", loop_linger, METH_NOARGS, "Look around before the next wait." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot loop_slots[] = {
	{ Py_tp_doc, "Takes requests from a FUSE device." },
	{ Py_tp_new, loop_new },
	{ Py_tp_dealloc, loop_dealloc },
	{ Py_tp_methods, loop_methods },
	{ 0, NULL },
};

static PyType_Spec loop_spec = {
	.name = "dumpfs.native.loops.Loop",
	.basicsize = sizeof(struct loop_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = loop_slots,
};

/* -- the module -------------------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
	{ "has_codec", python_has_codec, METH_VARARGS, "Whether a compression's library is installed." },
	{ "encode", python_encode, METH_VARARGS, "A batch of pages as it is stored." },
	{ NULL, NULL, 0, NULL },
};

static int add_types(PyObject *module)
{
	PyObject *loop_type = PyType_FromModuleAndSpec(module, &loop_spec, NULL);
	int failed;

	pages_type = PyType_FromModuleAndSpec(module, &pages_spec, NULL);
	failed = !pages_type || !loop_type || PyModule_AddObjectRef(module, "Pages", pages_type) ||
		 PyModule_AddObjectRef(module, "Loop", loop_type) || PyModule_AddIntConstant(module, "VERSION", VERSION);
	Py_XDECREF(loop_type);
	return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, add_types },
	{ 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "loops",
	.m_doc = "What dumpfs does in C, where there is a compiler.",
	.m_methods = functions,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_loops(void)
{
	return PyModuleDef_Init(&module);
}
