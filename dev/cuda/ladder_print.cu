// dev/cuda/ladder_print.cu: what was checked and measured as a table, or as JSON for table.py.
//
// In order: names and speeds, the table, JSON.
#include "ladder_parts.h"

#ifndef LADDER_COMMIT
#define LADDER_COMMIT "unknown"
#endif

const char *version_name(const LadderState *st, int version) {
    return version == LIBRARY ? "cuBLASLt" : st->versions[version - 1].name;
}

static double speed(const Case &c, double us) { return c.flops > 0 ? c.flops / us * 1e-6 : c.bytes / us * 1e-3; }

void print_table(const LadderState *st) {
    for (const Case &c : st->cases) {
        const char *unit = c.flops > 0 ? "TFLOP/s" : "GB/s";
        const double ceiling = c.flops > 0 ? st->multiply_tflops : st->copy_gbs;
        double library = -1, before = -1;
        for (const Result &r : c.results) if (r.version == LIBRARY) library = r.us;
        printf("\n%s: %s\n", st->operation.c_str(), c.name.c_str());
        printf("  %.3f MB must move", c.bytes * 1e-6);
        if (c.flops > 0) printf(", %.3f GFLOP", c.flops * 1e-9);
        printf("\n  %-44s %8s %7s", "version", "error", "bound");
        if (!st->check) printf(" %9s %8s %8s %7s %8s", "us", unit, "ceiling", "before", "cuBLASLt");
        printf("\n");
        for (const Result &r : c.results) {
            printf("  %d %-42s", r.version, version_name(st, r.version));
            if (r.ran) printf(" %8.1e %7.0e%s", r.error, r.bound, r.right ? "" : "  WRONG");
            else printf(" %8s", "cannot");
            if (r.us > 0) printf(" %9.1f %8.2f %6.1f %%", r.us, speed(c, r.us), 100 * speed(c, r.us) / ceiling);
            if (r.us > 0 && r.version != LIBRARY && before > 0) printf(" %6.2fx", before / r.us);
            else if (r.us > 0) printf(" %7s", "");
            if (r.us > 0 && library > 0) printf(" %7.2fx", library / r.us);
            printf("\n");
            if (r.us > 0 && r.version != LIBRARY) before = r.us;
        }
    }
    if (st->copy_gbs > 0)
        printf("\nceilings: device copy %.0f GB/s, bf16 multiply %.0f TFLOP/s; an empty kernel takes %.1f us here\n",
               st->copy_gbs, st->multiply_tflops, st->empty_us);
}

static void number(FILE *f, const char *key, double x) {
    if (x >= 0 && isfinite(x)) fprintf(f, ", \"%s\": %.6g", key, x);
    else fprintf(f, ", \"%s\": null", key);
}

// The driver's own number, as nvidia-smi has it; where the kernel does not tell, the CUDA version that it knows.
static void driver_version(char *out, size_t size) {
    FILE *f = fopen("/proc/driver/nvidia/version", "r");
    char line[300] = "", *word = NULL, *rest = line;
    if (f && fgets(line, sizeof line, f))
        while ((word = strtok_r(rest, " \t\n", &rest)))
            if (strspn(word, "0123456789.") == strlen(word) && strchr(word, '.')) break;
    if (f) fclose(f);
    int cuda = 0;
    CUDA_CHECK(cudaDriverGetVersion(&cuda));
    if (word) snprintf(out, size, "%s", word);
    else snprintf(out, size, "for CUDA %d.%d", cuda / 1000, cuda % 1000 / 10);
}

void print_json(const LadderState *st) {
    char gpu[300] = "", driver[40] = "";
    if (!st->list) {
        cudaDeviceProp p;
        CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
        snprintf(gpu, sizeof gpu, "%s", p.name);
        driver_version(driver, sizeof driver);
    }
    FILE *f = stdout;
    fprintf(f, "{\"operation\": \"%s\", \"gpu\": \"%s\", \"driver\": \"%s\", \"commit\": \"%s\"",
            st->operation.c_str(), gpu, driver, LADDER_COMMIT);
    number(f, "copy_gbs", st->copy_gbs);
    number(f, "multiply_tflops", st->multiply_tflops);
    number(f, "empty_us", st->empty_us);
    fprintf(f, ",\n \"versions\": [");
    for (size_t i = 0; i < st->versions.size(); i++)
        fprintf(f, "%s\n  {\"name\": \"%s\", \"idea\": \"%s\"}", i ? "," : "", st->versions[i].name,
                st->versions[i].idea);
    fprintf(f, "],\n \"cases\": [");
    for (size_t i = 0; i < st->cases.size(); i++) {
        const Case &c = st->cases[i];
        fprintf(f, "%s\n  {\"name\": \"%s\", \"shown\": %s", i ? "," : "", c.name.c_str(), c.shown ? "true" : "false");
        number(f, "bytes", c.bytes);
        number(f, "flops", c.flops);
        fprintf(f, ", \"versions\": [");
        for (size_t k = 0; k < c.results.size(); k++) {
            const Result &r = c.results[k];
            fprintf(f, "%s\n   {\"version\": %d, \"right\": %s", k ? "," : "", r.version, r.right ? "true" : "false");
            number(f, "error", r.ran ? r.error : -1);
            number(f, "bound", r.ran ? r.bound : -1);
            number(f, "us", r.us);
            number(f, "speed", r.us > 0 ? speed(c, r.us) : -1);
            fprintf(f, "}");
        }
        fprintf(f, "]}");
    }
    fprintf(f, "]}\n");
}

