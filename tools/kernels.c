/* The gated recurrence of the model, for training: forward and backward over time.
 *
 * h[t] = h[t-1] + i[t] * (c[t] - h[t-1]),   i = u * u
 *
 * All arrays are float32, C-contiguous, (batch, time, channels); h0 and dh0 are
 * (batch, channels). With `quantised` the state is rounded half up to multiples of
 * 2^-12 after every step, as the exact model does (u is then a multiple of 2^-5 and c
 * of 2^-12, so that every product and sum is exact in float32); the backward pass
 * treats rounding as the identity (straight-through).
 */
#include <math.h>
#include <stddef.h>

#define BLOCK 64
#define UNIT 4096.0f

void scan_forward(const float *u, const float *c, const float *h0, float *h,
                  int batch, int time, int channels, int quantised)
{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int b = 0; b < batch; b++)
        for (int d0 = 0; d0 < channels; d0 += BLOCK) {
            float state[BLOCK];
            int width = channels - d0 < BLOCK ? channels - d0 : BLOCK;
            for (int d = 0; d < width; d++) state[d] = h0[(size_t)b * channels + d0 + d];
            for (int t = 0; t < time; t++) {
                size_t at = ((size_t)b * time + t) * channels + d0;
                if (quantised)
                    for (int d = 0; d < width; d++) {
                        float i = u[at + d] * u[at + d];
                        float mixed = (1.0f - i) * state[d] + i * c[at + d];
                        state[d] = floorf(mixed * UNIT + 0.5f) / UNIT;
                        h[at + d] = state[d];
                    }
                else
                    for (int d = 0; d < width; d++) {
                        float i = u[at + d] * u[at + d];
                        state[d] += i * (c[at + d] - state[d]);
                        h[at + d] = state[d];
                    }
            }
        }
}

void scan_backward(const float *u, const float *c, const float *h0, const float *h,
                   const float *dh, float *du, float *dc,
                   int batch, int time, int channels)
{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int b = 0; b < batch; b++)
        for (int d0 = 0; d0 < channels; d0 += BLOCK) {
            float grad[BLOCK] = {0};
            int width = channels - d0 < BLOCK ? channels - d0 : BLOCK;
            for (int t = time - 1; t >= 0; t--) {
                size_t at = ((size_t)b * time + t) * channels + d0;
                const float *before = t ? h + at - channels : h0 + (size_t)b * channels + d0;
                for (int d = 0; d < width; d++) {
                    float uu = u[at + d], i = uu * uu;
                    float g = grad[d] + dh[at + d];
                    dc[at + d] = g * i;
                    du[at + d] = g * (c[at + d] - before[d]) * 2.0f * uu;
                    grad[d] = g * (1.0f - i);
                }
            }
        }
}

/* Clip, and round half up to multiples of 1/scale when quantised; low and high are bounds
 * in real units. Gradients pass except where they would push further out of bounds. */
void clip_forward(const float *x, float *y, ptrdiff_t count,
                  float scale, float low, float high, int quantised)
{
    float unit = 1.0f / scale;
    #pragma omp parallel for schedule(static)
    for (ptrdiff_t k = 0; k < count; k++) {
        float value = quantised ? floorf(x[k] * scale + 0.5f) * unit : x[k];
        value = value < low ? low : value;
        y[k] = value > high ? high : value;
    }
}

void clip_backward(const float *x, const float *dy, float *dx, ptrdiff_t count,
                   float low, float high)
{
    #pragma omp parallel for schedule(static)
    for (ptrdiff_t k = 0; k < count; k++) {
        int outward = ((x[k] > high) & (dy[k] < 0)) | ((x[k] < low) & (dy[k] > 0));
        dx[k] = outward ? 0.0f : dy[k];
    }
}
