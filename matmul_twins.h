// matmul_twins.h: in plain C, what an instruction set does not do with instructions of its own; a part of
// matmul_kernels.h. Written for any width of vector, so each is also the meaning of the instructions that replace it.
//
// In order: multiply-add, nothing to keep, weights as f32, the scale of a group.

#ifndef FMA
#define FMA(a, b, c) ((a) * (b) + (c))        // rounds twice where the instruction rounds once
#endif

#ifndef KEEP
#define KEEP(v) ((void)(v))
#endif

#ifndef WIDEN
INLINE V NAME(widen)(const uint16_t *p) {
    V v = {0};
    for (int i = 0; i < VW; i++) v[i] = bits_to_float((uint32_t)p[i] << 16);
    return v;
}
#define WIDEN NAME(widen)
#endif

#ifndef WIDEN8
INLINE V NAME(widen8)(const int8_t *p) {
    V v = {0};
    for (int i = 0; i < VW; i++) v[i] = p[i];
    return v;
}
#define WIDEN8 NAME(widen8)
#endif

#ifndef LOW4
INLINE V NAME(nibbles)(const uint8_t *p, int shift) {
    V v = {0};
    for (int i = 0; i < VW; i++) v[i] = (float)((p[i] >> shift & 15) - 8);
    return v;
}
#define LOW4(p) NAME(nibbles)(p, 0)
#define HIGH4(p) NAME(nibbles)(p, 4)
#endif

#ifndef HALF
#define HALF(p) half_to_float(*(p))
#endif
