/* The ROCm runtime of a machine without a GPU: the few calls that need more than an error code.
 * build.py adds every other one that MORI's libraries link, answering hipErrorNoDevice. */

enum { NO_DEVICE = 100 }; /* hipErrorNoDevice */

int hipGetDeviceCount(int *count) {
    *count = 0;
    return NO_DEVICE;
}

int hipGetLastError(void) { return 0; }

const char *hipGetErrorString(int error) {
    return error == NO_DEVICE ? "no ROCm-capable device is detected" : "unknown HIP error";
}

int hipRuntimeGetVersion(int *version) {
    *version = 70200000;
    return 0;
}

/* Called when a library with GPU code is loaded. */
void **__hipRegisterFatBinary(const void *code) {
    static void *handle;
    (void)code;
    return &handle;
}
