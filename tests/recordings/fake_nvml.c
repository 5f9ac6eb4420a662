/* FAKE libnvidia-ml.so.1: a double of NVIDIA's library for tests, written after the public NVML reference.
 *
 * It has no card behind it. It exists so that the real binding (nvidia-ml-py) meets real symbols, real structures and
 * real error codes. FAKE_NVML in the environment chooses what happens:
 *   good      two cards, the first with ECC trouble and two processes, the second cut by MIG
 *   lost      as good, but from the second reading on (counted by nvmlDeviceGetCount) the first card is lost
 *   driver    nvmlInit fails: the driver is not loaded
 *   mismatch  nvmlInit fails: library and kernel module are of different releases
 *   hang      nvmlInit never returns
 * Compiled with -DOLD it lacks what drivers before 510 lacked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NO_DRIVER = 9, LOST = 15, MISMATCH = 18 };
typedef struct { int number; } card;
typedef unsigned int u32;
typedef unsigned long long u64;

static card cards[2] = {{0}, {1}}, instances[2] = {{10}, {11}};
static int readings;
#define MB (1024ULL * 1024ULL)

static int is(const char *mode) { const char *m = getenv("FAKE_NVML"); return m && strcmp(m, mode) == 0; }
static int gone(card *c) { return c->number == 0 && is("lost") && readings > 1; }
#define ALIVE(c) do { if (gone(c)) return LOST; } while (0)

int nvmlInitWithFlags(u32 flags) {
    if (is("hang")) for (;;) pause();
    return is("driver") ? NO_DRIVER : is("mismatch") ? MISMATCH : OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == NO_DRIVER ? "Driver Not Loaded" : code == LOST ? "GPU is lost" : code == MISMATCH ? "Driver/library version mismatch" : "fake error";
}
int nvmlSystemGetDriverVersion(char *text, u32 length) { snprintf(text, length, "550.54.14"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(u32 *count) { readings++; *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, card **c) { *c = &cards[index]; ALIVE(*c); return OK; }
int nvmlDeviceGetName(card *c, char *text, u32 length) {
    ALIVE(c);
    if (c->number >= 10) snprintf(text, length, "NVIDIA A100-SXM4-40GB MIG %s", c->number == 10 ? "3g.20gb" : "1g.5gb");
    else snprintf(text, length, "NVIDIA A100-SXM4-40GB");
    return OK;
}
int nvmlDeviceGetUUID(card *c, char *text, u32 length) {
    ALIVE(c);
    snprintf(text, length, c->number >= 10 ? "MIG-fake-%d" : "GPU-fake-%d", c->number);
    return OK;
}
typedef struct { u64 total, free, used; } memory_v1;
int nvmlDeviceGetMemoryInfo(card *c, memory_v1 *m) {
    ALIVE(c);
    *m = c->number >= 10 ? (memory_v1){19968 * MB, 19949 * MB, 19 * MB} : (memory_v1){40960 * MB, 30000 * MB, 10960 * MB};
    return OK;
}
#ifndef OLD
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2;
int nvmlDeviceGetMemoryInfo_v2(card *c, memory_v2 *m) {
    ALIVE(c);
    if (m->version != (sizeof *m | 2u << 24)) return 25;
    m->total = 40960 * MB; m->reserved = 571 * MB; m->free = 30000 * MB; m->used = 10389 * MB;
    return OK;
}
typedef struct { u32 version, sensor; int temperature; } temperature_v1;
int nvmlDeviceGetTemperatureV(card *c, temperature_v1 *t) {
    ALIVE(c);
    if (t->version != (sizeof *t | 1u << 24)) return 25;
    t->temperature = 51;
    return OK;
}
#endif
int nvmlDeviceGetTemperature(card *c, u32 sensor, u32 *t) { ALIVE(c); *t = 50; return OK; }
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
int nvmlDeviceGetPciInfo_v3(card *c, pci_info *p) {
    memset(p, 0, sizeof *p);
    snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", c->number ? 0xB3 : 0x65);
    return OK;
}
typedef struct { u32 gpu, memory; } rates;
int nvmlDeviceGetUtilizationRates(card *c, rates *r) {
    if (c->number) return NOT_SUPPORTED; /* as under MIG */
    r->gpu = 88; r->memory = 40;
    return OK;
}
int nvmlDeviceGetMinorNumber(card *c, u32 *minor) { *minor = 1 - c->number; return OK; }
int nvmlDeviceGetEccMode(card *c, u32 *current, u32 *pending) { *current = *pending = 1; return OK; }
int nvmlDeviceGetTotalEccErrors(card *c, u32 type, u32 counter, u64 *count) {
    if (counter != 0) return NOT_SUPPORTED; /* volatile alone */
    *count = c->number ? 0 : type == 0 ? 7 : 2;
    return OK;
}
int nvmlDeviceGetRemappedRows(card *c, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    *corrected = *uncorrected = *failed = 0;
    *pending = c->number == 0;
    return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(card *c, u32 *pending) { return NOT_SUPPORTED; }

typedef struct { u32 pid; u64 used; u32 gi, ci; } process;
static int processes(card *c, u32 *count, process *found) {
    if (c->number) { *count = 0; return OK; }
    if (*count < 2) { *count = 2; return SMALL; }
    found[0] = (process){4711, 8000 * MB, ~0u, ~0u};
    found[1] = (process){4712, ~0ULL, ~0u, ~0u}; /* NVML_VALUE_NOT_AVAILABLE */
    *count = 2;
    return OK;
}
#ifdef OLD
int nvmlDeviceGetComputeRunningProcesses_v2(card *c, u32 *count, process *found) { return processes(c, count, found); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(card *c, u32 *count, process *found) { *count = 0; return OK; }
#else
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, u32 *count, process *found) { return processes(c, count, found); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(card *c, u32 *count, process *found) {
    if (c->number) { *count = 0; return OK; }
    if (*count < 1) { *count = 1; return SMALL; }
    found[0] = (process){4711, 8000 * MB, ~0u, ~0u};
    *count = 1;
    return OK;
}
#endif
int nvmlDeviceGetMigMode(card *c, u32 *current, u32 *pending) { *current = *pending = c->number == 1; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(card *c, u32 *count) { *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(card *c, u32 index, card **instance) {
    if (index > 2 || index == 1) return NOT_FOUND; /* places 0 and 2 are taken */
    *instance = &instances[index / 2];
    return OK;
}
int nvmlDeviceGetGpuInstanceId(card *c, u32 *id) { *id = c->number == 10 ? 2 : 9; return OK; }
int nvmlDeviceGetComputeInstanceId(card *c, u32 *id) { *id = 0; return OK; }
typedef struct {
    u32 version, id, p2p, slices, instances, multiprocessors, copy, decoders, encoders, jpeg, ofa;
    u64 memory_mb;
    char name[96];
} profile;
int nvmlDeviceGetGpuInstanceProfileInfoV(card *c, u32 number, profile *p) {
    if (p->version != (sizeof *p | 2u << 24)) return 25;
    if (number != 0 && number != 2) return NOT_SUPPORTED;
    p->id = number == 0 ? 19 : 9;
    p->instances = number == 0 ? 7 : 2;
    p->memory_mb = number == 0 ? 4864 : 19968;
    snprintf(p->name, sizeof p->name, number == 0 ? "MIG 1g.5gb" : "MIG 3g.20gb");
    return OK;
}
int nvmlDeviceGetGpuInstanceRemainingCapacity(card *c, u32 id, u32 *count) { *count = id == 19 ? 3 : 1; return OK; }
