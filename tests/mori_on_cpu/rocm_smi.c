/* ROCm-SMI, which MORI opens by itself to draw the machine's topology. MORI ends the process where
 * it reports no GPU, even if all memory is the host's: so it reports one, which HIP never finds. */
#include <stdbool.h>
#include <stdint.h>

int rsmi_init(uint64_t flags) {
    (void)flags;
    return 0;
}

int rsmi_shut_down(void) { return 0; }

int rsmi_num_monitor_devices(uint32_t *count) {
    *count = 1;
    return 0;
}

int rsmi_dev_pci_id_get(uint32_t gpu, uint64_t *address) {
    (void)gpu;
    *address = 0;
    return 0;
}

int rsmi_is_P2P_accessible(uint32_t from, uint32_t to, bool *accessible) {
    (void)from, (void)to;
    *accessible = false;
    return 0;
}

/* Asked only of a pair of GPUs; MORI insists that they exist. */
int rsmi_topo_get_link_type(void) { return 0; }
int rsmi_topo_get_link_weight(void) { return 0; }

int rsmi_status_string(int status, const char **text) {
    (void)status;
    *text = "emulated";
    return 0;
}
