// matmul_math.h: exp, GELU, soft-max, norms and a head's attention on vectors; a part of matmul_kernels.h.
//
// In order: loads of part of a vector, exp, activations, soft-max, norms, scores and mixtures of one query.
// The errors of the fitted polynomials stand beside them, before rounding to f32. NaN stays NaN.
// Not here: what they are for; the same in plain C is in matmul.c.

typedef int32_t NAME(vi) __attribute__((vector_size(4 * VW), aligned(4), may_alias));
#define VI NAME(vi)

// Elements 0 .. n-1 of p, the others `rest`.
INLINE V NAME(load_part)(const float *p, int n, float rest) {
    float a[VW];
    for (int i = 0; i < VW; i++) a[i] = i < n ? p[i] : rest;
    return NAME(load)(a);
}

INLINE void NAME(store_part)(float *p, V v, int n) {
    float a[VW];
    *(V *)a = v;
    for (int i = 0; i < n; i++) p[i] = a[i];
}

INLINE V NAME(where)(VI mask, V yes, V no) { return (V)((mask & (VI)yes) | (~mask & (VI)no)); }
INLINE V NAME(min)(V x, float top) { return NAME(where)(x > top, NAME(splat)(top), x); }        // NaN stays
INLINE V NAME(max)(V x, float bottom) { return NAME(where)(x < bottom, NAME(splat)(bottom), x); }
INLINE V NAME(fma)(V a, V b, float c) { return FMA(a, b, NAME(splat)(c)); }

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, by a polynomial of degree 6 (largest error 2e-9). Below
// -87 it is exp(-87), 2e-38; above 88 exp(88).
INLINE V NAME(exp)(V x) {
    const float magic = 12582912;      // 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
    x = NAME(min)(NAME(max)(x, -87), 88);
    const V shifted = NAME(fma)(x, NAME(splat)(1.44269504f), magic), n = shifted - magic;
    const V r = FMA(n, NAME(splat)(-1.42860677e-6f), FMA(n, NAME(splat)(-0.693145752f), x));
    V p = NAME(splat)(1.383683154e-3f);
    p = NAME(fma)(p, r, 8.374824034e-3f);
    p = NAME(fma)(p, r, 4.166822626e-2f);
    p = NAME(fma)(p, r, 0.1666642007f);
    p = NAME(fma)(p, r, 0.4999999207f);
    p = NAME(fma)(p, r, 1.000000036f);
    p = NAME(fma)(p, r, 1);
    return p * (V)(((VI)shifted << 23) + 0x3F800000);
}

// The exact GELU, x Phi(x) = max(x,0) - u Phi(-u) with u = |x|, and Phi(-u) = exp(-u^2/2) P(1 / (1 + 0.3 u)), the form
// of Abramowitz and Stegun 7.1.26 with a polynomial fitted to a relative error of 5.5e-8.
INLINE V NAME(gelu)(V x) {
    const V u = NAME(min)((V)((VI)x & 0x7FFFFFFF), 13), t = 1 / NAME(fma)(u, NAME(splat)(0.3f), 1);
    V p = NAME(splat)(0.0380651351f);
    p = NAME(fma)(p, t, -0.167635183f);
    p = NAME(fma)(p, t, 0.225476434f);
    p = NAME(fma)(p, t, -0.0728369518f);
    p = NAME(fma)(p, t, 0.139977808f);
    p = NAME(fma)(p, t, 0.0957847647f);
    p = NAME(fma)(p, t, 0.12163498f);
    p = NAME(fma)(p, t, 0.119528297f);
    p = NAME(fma)(p, t, 4.74269993e-6f);
    return NAME(max)(x, 0) - u * NAME(exp)(-0.5f * u * u) * p;
}

// 0.5 x (1 + tanh(y)) = x / (1 + exp(-2 y)).
INLINE V NAME(gelu_tanh)(V x) {
    const V y = x * NAME(fma)(x * x, NAME(splat)(0.79788456080286536f * 0.044715f), 0.79788456080286536f);
    return x / (1 + NAME(exp)(-2 * y));
}

INLINE V NAME(act)(V x, int act) {
    return act == ACT_RELU ? NAME(max)(x, 0) : act == ACT_GELU ? NAME(gelu)(x) : NAME(gelu_tanh)(x);
}

INLINE void NAME(activate_all)(float *x, int act, int n) {
    int i = 0;
    for (; i + VW <= n; i += VW) *(V *)(x + i) = NAME(act)(NAME(load)(x + i), act);
    if (i < n) NAME(store_part)(x + i, NAME(act)(NAME(load_part)(x + i, n - i, 0), act), n - i);
}

static TARGET void NAME(activate)(float *x, int act, int n) {
    if (act == ACT_RELU) NAME(activate_all)(x, ACT_RELU, n);
    else if (act == ACT_GELU) NAME(activate_all)(x, ACT_GELU, n);
    else NAME(activate_all)(x, ACT_GELU_TANH, n);
}

// The largest is subtracted first so that exp cannot overflow.
static TARGET void NAME(softmax)(float *x, int n) {
    V top = NAME(splat)(-INFINITY), sum = NAME(splat)(0);
    int i = 0;
    for (; i < n; i += VW) {
        const V v = i + VW <= n ? NAME(load)(x + i) : NAME(load_part)(x + i, n - i, -INFINITY);
        top = NAME(where)(v > top, v, top);
    }
    float t[VW], most = -INFINITY;
    *(V *)t = top;
    for (int j = 0; j < VW; j++) most = t[j] > most ? t[j] : most;
    for (i = 0; i + VW <= n; i += VW) {
        const V e = NAME(exp)(NAME(load)(x + i) - most);
        *(V *)(x + i) = e;
        sum += e;
    }
    if (i < n) NAME(store_part)(x + i, NAME(exp)(NAME(load_part)(x + i, n - i, 0) - most), n - i);
    float s = NAME(sum)(sum);
    for (int j = i; j < n; j++) s += x[j];
    for (int j = 0; j < i; j += VW) *(V *)(x + j) = NAME(load)(x + j) / s;
    for (int j = i; j < n; j++) x[j] /= s;
}

// With b: layer norm, (x - mean) / sqrt(var + eps) * w + b. Without: x / sqrt(mean square + eps) * w.
static TARGET void NAME(norm)(float *out, const float *x, const float *w, const float *b, float eps, int C) {
    V sum = NAME(splat)(0);
    float mean = 0;
    int i = 0;
    if (b) {
        for (; i + VW <= C; i += VW) sum += NAME(load)(x + i);
        mean = NAME(sum)(sum);
        for (; i < C; i++) mean += x[i];
        mean /= (float)C;
        sum = NAME(splat)(0);
    }
    for (i = 0; i + VW <= C; i += VW) {
        const V d = NAME(load)(x + i) - mean;
        sum = FMA(d, d, sum);
    }
    float sq = NAME(sum)(sum);
    for (; i < C; i++) sq += (x[i] - mean) * (x[i] - mean);
    const float s = 1 / sqrtf(sq / (float)C + eps);
    for (i = 0; i + VW <= C; i += VW) {
        const V v = (NAME(load)(x + i) - mean) * s * NAME(load)(w + i);
        if (b) *(V *)(out + i) = v + NAME(load)(b + i);
        else *(V *)(out + i) = v;
    }
    for (; i < C; i++) out[i] = (x[i] - mean) * s * w[i] + (b ? b[i] : 0);
}

// q (A), k (n,A) with rows ldk apart -> s (n) = k q. Keys come from memory; behind them in their row lie those of the
// head that is probably next.
static TARGET void NAME(scores)(float *s, const float *q, const float *k, size_t ldk, int n, int A) {
    for (int j = 0; j < n; j++, k += ldk) {
        V v = NAME(splat)(0);
        int i = 0;
        for (; i + VW <= A; i += VW) {
            __builtin_prefetch(k + A + i);
            v = FMA(NAME(load)(q + i), NAME(load)(k + i), v);
        }
        float sum = NAME(sum)(v);
        for (; i < A; i++) sum += q[i] * k[i];
        s[j] = sum;
    }
}

// s (n), v (n,A) with rows ldv apart -> out (A) += v^T s
static TARGET void NAME(mix)(float *out, const float *s, const float *v, size_t ldv, int n, int A) {
    int i = 0;
    for (; i + VW <= A; i += VW) {
        V o = NAME(load)(out + i);
        for (int j = 0; j < n; j++) {
            __builtin_prefetch(v + (size_t)j * ldv + A + i);         // as in scores()
            o = FMA(NAME(splat)(s[j]), NAME(load)(v + (size_t)j * ldv + i), o);
        }
        *(V *)(out + i) = o;
    }
    for (; i < A; i++)
        for (int j = 0; j < n; j++) out[i] += s[j] * v[(size_t)j * ldv + i];
}

#undef VI
