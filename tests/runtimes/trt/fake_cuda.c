/* A libcuda.so.1 without a GPU: "device" memory is host memory that is kept account of, streams run
   at once, events take the clock, graphs keep callbacks. Wrong use is an error, as it is there. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_INIT = 3, NO_DEVICE = 100, BAD_CONTEXT = 201, NOT_READY = 600, CAPTURE = 900 };
#define MOST 4096
typedef void (*work_t)(void);
static int started, current, retained;
static struct { char *at; size_t size; int device; } held[MOST];
static int live, handles, launched;
static size_t used;
typedef struct { int kind; double ms; int capturing, count; work_t work[16]; } thing; /* stream, event, graph, exec */

static long setting(const char *name, long otherwise) { const char *v = getenv(name); return v ? atol(v) : otherwise; }
static double now_ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static size_t total(void) { return (size_t)setting("FAKE_TOTAL_MIB", 8192) << 20; }
static size_t unused(void) { return ((size_t)setting("FAKE_FREE_MIB", 4096) << 20) - used; }

int cuInit(unsigned f) { (void)f; if (setting("FAKE_NO_DRIVER", 0)) return NO_DEVICE; started = 1; return OK; }
int cuDriverGetVersion(int *v) { *v = 12060; return OK; }
int cuGetErrorName(int e, const char **n) {
  *n = e == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : e == INVALID ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_FAKE"; return OK; }
int cuGetErrorString(int e, const char **n) { *n = e == NO_DEVICE ? "no CUDA-capable device is detected" : "as the fake driver says"; return OK; }
int cuDeviceGetCount(int *n) { if (!started) return NOT_INIT; *n = (int)setting("FAKE_DEVICES", 1); return OK; }
int cuDeviceGet(int *d, int i) { if (i >= setting("FAKE_DEVICES", 1)) return INVALID; *d = i; return OK; }
int cuDeviceGetName(char *n, int len, int d) { (void)d; const char *v = getenv("FAKE_NAME"); snprintf(n, len, "%s", v ? v : "Fake Orin"); return OK; }
int cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = total(); return OK; }
int cuDeviceGetAttribute(int *v, int a, int d) {
  (void)d; long sm = setting("FAKE_SM", 87);
  *v = a == 75 ? (int)(sm / 10) : a == 76 ? (int)(sm % 10) : a == 16 ? 16 : a == 18 ? (int)setting("FAKE_INTEGRATED", 0) : -1;
  return *v < 0 ? INVALID : OK; }
int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; if (!started) return NOT_INIT; retained++; *c = &retained; return OK; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; if (retained < 1) return BAD_CONTEXT; retained--; return OK; }
int cuCtxSetCurrent(void *c) { current = c == &retained; return OK; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { if (!current) return BAD_CONTEXT; *f = unused(); *t = total(); return OK; }

static int take(char **at, size_t size, int device) {
  if (!current) return BAD_CONTEXT;
  if (live == MOST || (device && size > unused())) return NO_MEMORY;
  *at = malloc(size); if (!*at) return NO_MEMORY;
  memset(*at, 0x5a, size);
  held[live].at = *at; held[live].size = size; held[live++].device = device;
  if (device) used += size;
  return OK; }
static int drop(char *at, int device) {
  for (int i = 0; i < live; i++) if (held[i].at == at && held[i].device == device) {
    if (device) used -= held[i].size;
    free(at); held[i] = held[--live]; return OK; }
  return INVALID; }
static int inside(char *at, size_t size, int device) {
  for (int i = 0; i < live; i++)
    if (held[i].device == device && at >= held[i].at && at + size <= held[i].at + held[i].size) return 1;
  return 0; }
int fake_is_device(unsigned long long at, size_t size) { return inside((char *)at, size, 1); }
/* What a process leaves behind goes to the file $FAKE_LEDGER, a line each. */
__attribute__((destructor)) static void told(void) {
  const char *path = getenv("FAKE_LEDGER"); FILE *f = path && started ? fopen(path, "a") : NULL;
  if (f) fprintf(f, "%d live, %d contexts\n", live + handles, retained);
  if (f && launched) fprintf(f, "graphs were launched\n");
  if (f) fclose(f); }
int cuMemAlloc_v2(unsigned long long *at, size_t size) { char *p; int e = take(&p, size, 1); if (!e) *at = (unsigned long long)p; return e; }
int cuMemFree_v2(unsigned long long at) { return drop((char *)at, 1); }
int cuMemAllocHost_v2(void **at, size_t size) { char *p; int e = take(&p, size, 0); if (!e) *at = p; return e; }
int cuMemFreeHost(void *at) { return drop(at, 0); }

static int valid(thing *t, int kind) { return t && t->kind == kind; }
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t n, void *s) {
  if (!valid(s, 1) || !inside((char *)to, n, 1)) return INVALID;
  if (((thing *)s)->capturing) return CAPTURE;
  memcpy((char *)to, from, n); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t n, void *s) {
  if (!valid(s, 1) || !inside((char *)from, n, 1)) return INVALID;
  if (((thing *)s)->capturing) return CAPTURE;
  memcpy(to, (char *)from, n); return OK; }
static int make(void **t, int kind) { if (!current) return BAD_CONTEXT; thing *n = calloc(1, sizeof *n); n->kind = kind; *t = n; handles++; return OK; }
static int end(thing *t, int kind) { if (!valid(t, kind)) return INVALID; t->kind = 0; handles--; return OK; }
int cuStreamCreate(void **s, unsigned f) { (void)f; return make(s, 1); }
int cuStreamDestroy_v2(void *s) { return end(s, 1); }
int cuStreamSynchronize(void *s) { if (!valid(s, 1)) return INVALID; return ((thing *)s)->capturing ? CAPTURE : OK; }
int cuEventCreate(void **e, unsigned f) { (void)f; return make(e, 2); }
int cuEventDestroy_v2(void *e) { return end(e, 2); }
int cuEventRecord(void *e, void *s) { if (!valid(e, 2) || !valid(s, 1)) return INVALID; ((thing *)e)->ms = now_ms(); return OK; }
int cuEventSynchronize(void *e) { return valid(e, 2) ? OK : INVALID; }
int cuEventElapsedTime(float *ms, void *a, void *b) {
  if (!valid(a, 2) || !valid(b, 2)) return INVALID;
  if (!((thing *)a)->ms || !((thing *)b)->ms) return NOT_READY;
  *ms = (float)(((thing *)b)->ms - ((thing *)a)->ms); return OK; }
int cuStreamBeginCapture_v2(void *s, int mode) { (void)mode; if (!valid(s, 1)) return INVALID; thing *t = s; t->capturing = 1; t->count = 0; return OK; }
int cuStreamEndCapture(void *s, void **g) {
  if (!valid(s, 1) || !((thing *)s)->capturing) return INVALID;
  ((thing *)s)->capturing = 0; int e = make(g, 3);
  if (!e) { thing *t = *g; t->count = ((thing *)s)->count; memcpy(t->work, ((thing *)s)->work, sizeof t->work); }
  return e; }
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) {
  (void)f; if (!valid(g, 3)) return INVALID;
  int e = make(x, 4); if (!e) { thing *t = *x; t->count = ((thing *)g)->count; memcpy(t->work, ((thing *)g)->work, sizeof t->work); }
  return e; }
int cuGraphLaunch(void *x, void *s) {
  if (!valid(x, 4) || !valid(s, 1)) return INVALID;
  for (int i = 0; i < ((thing *)x)->count; i++) ((thing *)x)->work[i]();
  launched++;
  return OK; }
int cuGraphExecDestroy(void *x) { return end(x, 4); }
int cuGraphDestroy(void *g) { return end(g, 3); }
/* What an engine puts into a stream: done at once, or kept while the stream is captured. */
int fake_launch(void *s, work_t work) {
  if (!valid(s, 1)) return INVALID;
  thing *t = s;
  if (t->capturing) { if (t->count == 16) return INVALID; t->work[t->count++] = work; } else work();
  return OK; }
