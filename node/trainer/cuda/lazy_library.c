// One shared library, opened when the first of its functions is called. lazy_libraries.py compiles this once for each
// library, with LIBRARY its file name, FAILURE what its functions return where it is missing, and TABLE(x) the prefix of
// its symbols; the jumps themselves are assembly that it writes beside it.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *TABLE(slots)[] __attribute__((visibility("hidden")));
extern const char *const TABLE(names)[] __attribute__((visibility("hidden")));

static void *library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *open_in(const char *folder) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", folder, LIBRARY);
    return length > 0 && (size_t)length < sizeof path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
}

// CUDA_LIB_DIR first (folders between colons), then where the system looks, then where toolkits and containers put them.
static void open_library(void) {
    const char *given = getenv("CUDA_LIB_DIR");
    char *folders = given ? strdup(given) : NULL;
    char *rest = NULL;
    for (char *folder = folders ? strtok_r(folders, ":", &rest) : NULL; folder && !library; folder = strtok_r(NULL, ":", &rest))
        library = open_in(folder);
    free(folders);
    if (!library) library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL);
    const char *usual[] = {"/usr/local/cuda/lib64", "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"};
    for (size_t i = 0; i < sizeof usual / sizeof *usual && !library; i++) library = open_in(usual[i]);
}

static int missing(void) { return FAILURE; }

// The address of function `index`, which its slot holds from now on. Two threads that race store the same value.
__attribute__((visibility("hidden"))) void *TABLE(resolve)(long index) {
    pthread_once(&once, open_library);
    void *function = library ? dlsym(library, TABLE(names)[index]) : NULL;
    if (!function) function = (void *)missing;
    __atomic_store_n(&TABLE(slots)[index], function, __ATOMIC_RELEASE);
    return function;
}
