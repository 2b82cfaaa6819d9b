// e^x of vectors of floats, included inside a tier's anonymous namespace behind its primitives (see vector-inl.h).

// 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the Cephes polynomial for e^r; relative error 2e-7.
// Below -87.3 the result stays at the smallest normal numbers instead of becoming subnormal, from 88.4 on it may be
// infinite.

inline Floats exponential(Floats x) {
    x = lower(broadcast(88.8f), higher(broadcast(-87.3f), x));
    const Floats n = nearest(mul(x, broadcast(1.44269504f)));
    const Floats r = negate_fma(n, broadcast(-2.12194440e-4f), negate_fma(n, broadcast(0.693359375f), x));
    Floats p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, broadcast(1.0f)));
    return times_power(p, n);
}
