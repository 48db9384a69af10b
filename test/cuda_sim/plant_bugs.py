#!/usr/bin/env python3
"""Plants mistakes in the CUDA code, one at a time, and requires that the simulator's tests find each of them.

    python3 test/cuda_sim/plant_bugs.py compile BUILD     writes BUILD/bugs/: the sources with every mistake in them,
                                                          each behind `planted(N)`, so that one compilation does for all
    python3 test/cuda_sim/plant_bugs.py run BUILD [NAME...] [--sample N] [--jobs N]   runs BUILD/bugs/test_cuda for each
    python3 test/cuda_sim/plant_bugs.py table             the list as a table for doc/cuda-sim.md

`make test-cuda-bugs` does the first two. A mistake is a change of text in blip2.cu or cuda_*.cuh: a pattern that is not
found exactly once stops the script, so that the list cannot fall behind the code. In the new text PLANTED stands for
"this mistake is switched on". Each names the tests that run it (parts of their names, see test_cuda.cu) and a regular
expression that the report must match: a mistake that is found for another reason counts as not found. Races are a
matter of the drawn order, so up to SEEDS seeds are tried; which one found it is printed.

Not here: mistakes in how the simulator is used (test_sim.cpp).
"""

import concurrent.futures
import os
import re
import subprocess
import sys

SEEDS = 3
LIMIT = 300      # seconds a run may take on a busy machine

ATTENTION, LAYERS, BACKEND, STREAM = "cuda_attention.cuh", "cuda_layers.cuh", "blip2.cu", "cuda_stream.cuh"
TILE, CHOOSE = "cuda_tile.cuh", "cuda_choose.cuh"
DENSE = ""     # whichever file has it
FIXTURE_F32, FIXTURE_BF16 = "fixture of family 1, dtype 0", "fixture of family 1, dtype 1"
TINY = "test/data/tiny_opt.bin"
WRONG = r"bound \d|other tokens|another one"          # a result that differs
RACE, BOUNDS = r"cuda_sim: race", r"cuda_sim: out of bounds"
STOPPED = r"this cannot happen"                       # generate.c's own check
# how the table words them
PLAIN = [(WRONG, "a result that differs"), (r"bound \d", "a result that differs"), (r" \(1056", " size"),
         (r", \d+ are", " ... are"), (r"(race|cp\.async)", "race|cp.async"), (r"(race|pdl)", "race|pdl"),
         (r"(warp|deadlock)", "warp|deadlock")]

# name, what must be reported, tests, edits: (file, old, new)...
BUGS = [
    ("no barrier before the next tile overwrites this one", r"cuda_sim: (race|cp\.async)", "heads of 24, 150 keys",
     (ATTENTION, "        __syncthreads();   // before the next load",
      "        if (!PLANTED) __syncthreads();   // before the next load")),
    ("no barrier behind the wait for a tile", r"cuda_sim: (race|cp\.async)", "attention, 2 bytes, heads of 40",
     (ATTENTION, "} else cp_async_wait<0>();\n        __syncthreads();",
      "} else cp_async_wait<0>();\n        if (!PLANTED) __syncthreads();")),
    ("no wait for cp.async", r"cuda_sim: cp\.async", "attention, 2 bytes, heads of 40",
     (ATTENTION, "            cp_async_wait<1>();", "            if (!PLANTED) cp_async_wait<1>();")),
    ("one key too many is loaded", BOUNDS, "attention, 2 bytes, heads of 40",
     (ATTENTION, "const bool there = j0 + j < Tk && d < A;", "const bool there = j0 + j < Tk + PLANTED && d < A;")),
    ("one key too many is seen", WRONG, "attention, 2 bytes, heads of 40",
     (ATTENTION, "const bool seen = j < Tk && !", "const bool seen = j < Tk + PLANTED && !")),
    ("swapped fragment registers of K", WRONG, "attention, 2 bytes, heads of 40",
     (ATTENTION, "mma_m16n8k16_bf16(s[2 * n], qa[step], kb);",
      "mma_m16n8k16_bf16(s[2 * n], qa[step], PLANTED ? kb + 2 : kb);")),
    ("swapped fragment registers of P", WRONG, "attention, 2 bytes, heads of 40",
     (ATTENTION, "pa[n / 2][n % 2 * 2 + r] =", "pa[n / 2][PLANTED ? r * 2 + n % 2 : n % 2 * 2 + r] =")),
    ("V is not transposed", WRONG, "attention, 2 bytes, heads of 40",
     (ATTENTION, "                ldmatrix_x4_trans(vb, vs +",
      "                if (PLANTED) ldmatrix_x4(vb, vs + (step * 16 + lane % 16) * LD + n * 16 + lane / 16 * 8);\n"
      "                else ldmatrix_x4_trans(vb, vs +")),
    ("a shuffle that only lanes with a query reach", r"cuda_sim: (warp|deadlock)", "attention, 2 bytes, heads of 40",
     (ATTENTION, "top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 1));",
      "if (!PLANTED || i0 + 8 * r < Tq) top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 1));")),
    ("no opt-in to more than 48 KiB of shared memory", r"dynamic shared memory, \d+ are allowed",
     "attention, 2 bytes, heads of 88",
     (ATTENTION,
      "    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,\n"
      "                                    (int)attention_shared<AP>()));",
      "    if (!PLANTED)\n"
      "        CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,\n"
      "                                        (int)attention_shared<AP>()));")),
    ("a stale row of the KV cache: the row's own instead of its ancestor's", WRONG, "past bf16, heads of 80",
     (ATTENTION, "p.R + line[at - n]) * 2 * I", "p.R + (PLANTED ? row : line[at - n])) * 2 * I")),
    ("the new token is left out of attention", WRONG, "past bf16, heads of 80",
     (ATTENTION, "t = p.kv_new ? *p.t : -1, last = n + t;", "t = p.kv_new ? *p.t : -1, last = n + t - PLANTED;")),
    ("no barrier before the warps' parts are added", RACE, "past bf16, heads of 80",
     (ATTENTION, "    __syncthreads();\n    float all = -INFINITY, sum_l = 0;",
      "    if (!PLANTED) __syncthreads();\n    float all = -INFINITY, sum_l = 0;")),
    ("a misaligned 128-bit load", r"cuda_sim: misaligned", "dense dtype 1, 2-byte activations, form 2, (70,33)",
     (DENSE, "if (C % 8 == 0) return load_stream_128(p);", "if (C % 8 == 0 || PLANTED) return load_stream_128(p);")),
    ("the tail of an odd row is left out", WRONG, "dense dtype 1, 2-byte activations, form 1, (3,33)",
     (DENSE, "    if (!whole)\n", "    if (!whole && !PLANTED)\n")),
    ("uninitialised shared memory behind the last column", WRONG, "dense dtype 3, 2-byte activations, form 0, (8,33)",
     (DENSE, "                put(xs + r * ldx + x_at<T>(c), r < d.T",
      "                if (!PLANTED || c < C) put(xs + r * ldx + x_at<T>(c), r < d.T")),
    ("too little dynamic shared memory", BOUNDS, "dense dtype 0, 4-byte activations, form 0, (8,64)",
     (DENSE, "const size_t shared = (size_t)R * rows_stride(d.C) * sizeof(T);",
      "const size_t shared = (size_t)R * (rows_stride(d.C) - PLANTED) * sizeof(T);")),
    ("the next turn overwrites partial sums that are still read", RACE,
     "dense dtype 0, 4-byte activations, form 0, (8,160)",
     (DENSE, "o0 += gridDim.x * slots, turn ^= 1)", "o0 += gridDim.x * slots, turn ^= !PLANTED)")),
    ("a prefetch behind the end of the weights", r"prefetch of", "dense dtype 0, 4-byte activations, form 0, (8,64)",
     (DENSE, "if (at < bytes) prefetch_l2(", "if (at < bytes || PLANTED) prefetch_l2(")),
    ("the scale of another row", WRONG, "dense dtype 2, 2-byte activations, form 0, (8,64)",
     (STREAM, "y *= ((const float *)d.w.scale)[o];", "y *= ((const float *)d.w.scale)[PLANTED ? o / 2 : o];")),
    ("the scale of another group", WRONG, "dense dtype 3, 2-byte activations, form 2, (70,160)",
     (DENSE, "const float scale = f16_to_f32(((const f16 *)w.scale)[group]);",
      "const float scale = f16_to_f32(((const f16 *)w.scale)[PLANTED ? group / 2 : group]);")),
    ("int4: the nibbles of a byte are swapped", WRONG, "dense dtype 3, 2-byte activations, form 2, (70,160)",
     (DENSE, "((int)((j < 16 ? byte : byte >> 4) & 15) - 8)",
      "((int)(((j < 16) != PLANTED ? byte : byte >> 4) & 15) - 8)")),
    ("tiles, int4: the other nibble of a byte", WRONG, "dense dtype 3, 2-byte activations, form 4, (88,144)",
     (TILE, "int4_pairs(a, v.x >> t / 2 * 4)", "int4_pairs(a, v.x >> (PLANTED ? 1 - t / 2 : t / 2) * 4)")),
    ("tiles, int4: a group without its scale", WRONG, "dense dtype 3, 2-byte activations, form 4, (88,144)",
     (TILE, "acc[m][n][e] += sum[e] * s[m][e / 2];", "acc[m][n][e] += PLANTED ? sum[e] : sum[e] * s[m][e / 2];")),
    ("tiles: no wait for the ring", r"cuda_sim: cp\.async", "dense dtype 2, 2-byte activations, form 4, (88,144)",
     (TILE, "        cp_async_wait<TILE_STAGES - 2>();", "        if (!PLANTED) cp_async_wait<TILE_STAGES - 2>();")),
    ("tiles: sums overwrite a ring that is still read", RACE, "dense dtype 2, 2-byte activations, form 4, (88,144)",
     (TILE, "    __syncthreads();   // nobody reads", "    if (!PLANTED) __syncthreads();   // nobody reads")),
    ("a step behind the end reads the weights", "behind the end", "wide model of family 1, dtype 1: idle, 2 rows",
     (STREAM, "    if (!going) {", "    if (!going && !PLANTED) {")),
    ("tiles: a step behind the end leaves copies behind", r"cuda_sim: cp\.async",
     "wide model of family 1, dtype 1: idle, 90 rows",
     (TILE, "        cp_async_commit();   // a wait", "        if (!PLANTED) cp_async_commit();   // a wait")),
    ("the stop flag is set before all prompts were looked at", WRONG + "|" + STOPPED, TINY + ": tokens",
     (CHOOSE, "more = __syncthreads_or(more);", "more = PLANTED ? more : __syncthreads_or(more);")),
    ("the sums of a row are begun before its largest logit is there", r"cuda_sim: (race|pdl)", FIXTURE_F32 + ": tokens",
     (CHOOSE, "    SHARED(float, e, [SLICE]);\n    pdl_wait();",
      "    SHARED(float, e, [SLICE]);\n    if (!PLANTED) pdl_wait();")),
    ("no barrier between the tiles of a multiply", RACE, "dense dtype 1, 2-byte activations, form 2, (70,160)",
     (DENSE, "xv[i]);\n                store_128(&ws[(step + 1) & 1][row + 32 * i][col], wv[i]);\n            }\n"
      "        __syncthreads();",
      "xv[i]);\n                store_128(&ws[(step + 1) & 1][row + 32 * i][col], wv[i]);\n            }\n"
      "        if (!PLANTED) __syncthreads();")),
    ("a multiply writes one column too many", r"cuda_sim: race|beside the output|bound \d",
     "dense dtype 2, 2-byte activations, form 2, (70,33)",
     (DENSE, "if (t >= d.T || o >= d.OC) continue;\n                const float y = acc[i][n][e] * (W ==",
      "if (t >= d.T || o >= d.OC + PLANTED) continue;\n                const float y = acc[i][n][e] * (W ==")),
    ("a wrong leading dimension", r"cuda_sim: out of bounds|bound \d", FIXTURE_F32 + ": stages",
     (DENSE, "cublasLtMatrixLayoutCreate(&p.x, in, (uint64_t)p.C, (uint64_t)p.T, p.C)",
      "cublasLtMatrixLayoutCreate(&p.x, in, (uint64_t)p.C, (uint64_t)p.T, p.C + 8 * PLANTED)")),
    ("a leading dimension below the number of rows", r"leading dimension below", FIXTURE_F32 + ": stages",
     (DENSE, "cublasLtMatrixLayoutCreate(&p.out, out, (uint64_t)p.OC, (uint64_t)p.T, p.OC)",
      "cublasLtMatrixLayoutCreate(&p.out, out, (uint64_t)p.OC, (uint64_t)p.T, p.OC - PLANTED)")),
    ("the f32 bias is given to a bf16 epilogue", r"bound \d|misaligned", FIXTURE_BF16 + ": stages",
     (DENSE, "    if (bias)\n        CUBLAS_CHECK(",
      "    if (bias && PLANTED) bias = d.b;\n    if (bias)\n        CUBLAS_CHECK(")),
    ("a kept plan keeps the bias of the first layer that used it", WRONG, TINY + ": stages",
     (DENSE, "    if (!p) {\n        p = &lt->plans[",
      "    const bool made = !p;\n    if (!p) {\n        p = &lt->plans["),
     (DENSE, "CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER",
      "if (made || !PLANTED) CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER")),
    ("the library gets no workspace", r"workspace is smaller", FIXTURE_F32 + ": tokens",
     (DENSE, "&p->algo, lt->workspace, lt->workspace_bytes, s)",
      "&p->algo, lt->workspace, PLANTED ? 0 : lt->workspace_bytes, s)")),
    ("too many threads in a block", r"block \(1056", "norm bf16 (5,130)",
     (LAYERS, "dim3(ceil_div(rows, 4)), dim3(128), 0, s, out, out32",
      "dim3(ceil_div(rows, 4)), dim3(PLANTED ? 1056 : 128), 0, s, out, out32")),
    ("rows behind the last one are normed", BOUNDS + r"|beside the output|cuda_sim: race", "norm bf16 (5,130)",
     (LAYERS, "    if (row >= rows) return;", "    if (row >= rows + 2 * PLANTED) return;")),
    ("no pdl_wait", r"cuda_sim: (race|pdl)", "embed dtype 1, width 33",
     (LAYERS, "    pdl_wait();\n    pdl_launch();\n    const int row = blockIdx.x, id = ids[row];",
      "    if (!PLANTED) pdl_wait();\n    pdl_launch();\n    const int row = blockIdx.x, id = ids[row];")),
    ("a row of positions behind the table", r"bound \d|cuda_sim: out of bounds", "embed dtype 1, width 33",
     (LAYERS, "pos[(size_t)(positions[row] + 2) * D + i]", "pos[(size_t)(positions[row] + 2 + PLANTED) * D + i]")),
    ("the row behind the last one is gathered", r"bound \d|cuda_sim: out of bounds", "gather, width 37",
     (LAYERS, "x[(size_t)rows[blockIdx.x] * D + i]", "x[(size_t)(rows[blockIdx.x] + PLANTED) * D + i]")),
    ("the gate is read from the next row", WRONG, "activate bf16 1 (3,40), gated",
     (LAYERS, "if (gated) unpack(g, *(const uint4 *)(a + F), T());",
      "if (gated) unpack(g, *(const uint4 *)(a + (PLANTED ? 0 : F)), T());")),
    ("a host pointer in a kernel", r"cuda_sim: host memory", FIXTURE_BF16 + ": stages",
     (BACKEND, "r->bias16 + at, r->bias[i].b, n);",
      "r->bias16 + at, PLANTED ? r->m->vit_block[0].qkv_b : r->bias[i].b, n);")),
    ("the upload does not wait before it fills a buffer again", RACE + "|" + WRONG, FIXTURE_F32 + ": stages",
     (BACKEND, "if (i >= (size_t)made) CUDA_CHECK(cudaEventSynchronize",
      "if (i >= (size_t)made && !PLANTED) CUDA_CHECK(cudaEventSynchronize")),
    ("a copy in another stream", RACE, FIXTURE_F32 + ": tokens",
     (BACKEND, "cudaMemcpyDeviceToDevice, r->s));", "cudaMemcpyDeviceToDevice, PLANTED ? 0 : r->s));")),
    ("what was chosen is looked at before it has come", RACE + "|" + WRONG + "|" + STOPPED + "|the time between events",
     FIXTURE_F32 + ": tokens",
     (BACKEND, "    CUDA_CHECK(cudaEventSynchronize(r->chosen[i % 3]));",
      "    if (!PLANTED) CUDA_CHECK(cudaEventSynchronize(r->chosen[i % 3]));")),
    ("a beam keeps its own past when it should take its parent's", WRONG, FIXTURE_F32 + ": tokens",
     (DENSE, "R + parent[row]) * max_new;", "R + (PLANTED ? row : parent[row])) * max_new;")),
    ("keys and values go into the slot of the token before", WRONG, FIXTURE_F32 + ": tokens",
     (DENSE, "slot[row] = t * R + row;", "slot[row] = (PLANTED && t ? t - 1 : t) * R + row;")),
    ("a graph is launched that was captured for fewer rows", WRONG + "|" + STOPPED, FIXTURE_F32 + ": tokens",
     (BACKEND, "run_graph(r, &r->step_graph, key, [=]", "run_graph(r, &r->step_graph, PLANTED ? 1 : key, [=]")),
    ("memory for fewer rows of logits than there are", BOUNDS, FIXTURE_F32 + ": tokens",
     (BACKEND, "take(a, &r->logits,     most(B, R), c->V, 1, F);",
      "take(a, &r->logits,     PLANTED ? B : most(B, R), c->V, 1, F);")),
    ("a buffer is not freed", r"allocations were not freed", FIXTURE_F32 + ": stages",
     (BACKEND, "for (int i = 0; i < r->n_owned; i++) CUDA_CHECK(cudaFree",
      "for (int i = 0; i < r->n_owned - PLANTED; i++) CUDA_CHECK(cudaFree")),
]


def plant(folder):
    """Writes the sources with all mistakes, each behind planted(its number from 1 on), to `folder`."""
    names = [BACKEND] + sorted(f for f in os.listdir(".") if f.startswith("cuda_") and f.endswith((".cuh", ".h")))
    text = {f: open(f).read() for f in names}
    for number, (name, _, _, *edits) in enumerate(BUGS, 1):
        for file, old, new in edits:
            file = file or max(text, key=lambda f: text[f].count(old))
            found = text[file].count(old)
            if found != 1:
                sys.exit(f"plant_bugs.py: '{name}': found {found} times in {file}, expected once:\n{old}")
            text[file] = text[file].replace(old, new.replace("PLANTED", f"planted({number})"))
    mark = "#ifdef CUDA_SIM\n#include \"cuda_sim.h\"\n"
    if text["cuda_common.h"].count(mark) != 1:
        sys.exit("plant_bugs.py: cuda_common.h does not include cuda_sim.h as expected")
    text["cuda_common.h"] = text["cuda_common.h"].replace(mark, mark + """
static const int planted_bug = getenv("PLANTED_BUG") ? atoi(getenv("PLANTED_BUG")) : 0;
static inline bool planted(int number) { return planted_bug == number; }
""")
    os.makedirs(f"{folder}/test", exist_ok=True)
    for f in os.listdir("test"):
        if f == "test_cuda.cu" or (f.startswith("cuda_") and f.endswith(".h")):
            text[f"test/{f}"] = open(f"test/{f}").read()
    for f, t in text.items():
        if not os.path.exists(f"{folder}/{f}") or open(f"{folder}/{f}").read() != t:
            with open(f"{folder}/{f}", "w") as out:
                out.write(t)


def attempt(program, number, tests, seed):
    """Exit code and what was printed."""
    env = dict(os.environ, PLANTED_BUG=str(number), SIM_SEED=str(seed))
    try:
        p = subprocess.run([program, *tests], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors="replace", timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return 124, f"no end after {LIMIT} s"
    return p.returncode, p.stdout


def lines_of(report):
    """The lines that say what was wrong."""
    return [x for x in report.splitlines() if x.startswith(("cuda_sim", "FAIL")) or "error" in x][:3] or ["nothing"]


def try_bug(program, number):
    """(was it found, lines to print)"""
    name, wanted, test, *_ = BUGS[number - 1]
    for seed in range(1, SEEDS + 1):
        code, report = attempt(program, number, [test], seed)
        if code:
            break
    line = next((x for x in report.splitlines() if re.search(wanted, x)), None)
    if code not in (0, 124) and line:
        return True, f"found  {name} (seed {seed}): {line[:150]}"
    return False, "\n  ".join([f"FAIL {name}: exit code {code}, no /{wanted}/ in:", *lines_of(report)])


def run(program, names, sample, jobs):
    """Runs the program with each mistake, then without any; returns the exit code."""
    picked = [n for n, b in enumerate(BUGS, 1) if not names or any(x in b[0] for x in names)]
    if sample:
        picked = picked[::max(1, len(picked) // sample)][:sample]
    passed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for found, text in pool.map(lambda number: try_bug(program, number), picked):
            passed += found
            print(text, flush=True)
    code, report = attempt(program, 0, sorted({BUGS[n - 1][2] for n in picked}), 1)
    passed += code == 0
    if code:
        print("FAIL without any mistake:", *lines_of(report), sep="\n  ")
    print(f"{passed} passed, {len(picked) + 1 - passed} failed, 0 skipped")
    return passed != len(picked) + 1


def main():
    args = sys.argv[1:]
    options = {"--sample": 0, "--jobs": 1}
    for option in options:
        if option in args:
            at = args.index(option)
            options[option] = int(args[at + 1])
            del args[at:at + 2]
    if args[:1] == ["compile"] and len(args) == 2:
        plant(f"{args[1]}/bugs")
    elif args[:1] == ["run"] and len(args) >= 2:
        sys.exit(run(f"{args[1]}/bugs/test_cuda", args[2:], options["--sample"], options["--jobs"]))
    elif args == ["table"]:
        print("| planted | found as |\n|---|---|")
        for name, wanted, *_ in BUGS:
            for pattern, words in (*PLAIN, ("|", " or "), ("\\", ""), ("cuda_sim: ", "")):
                wanted = wanted.replace(pattern, words)
            print(f"| {name} | {wanted} |")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
