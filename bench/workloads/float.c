/* SPDX-License-Identifier: MIT */
/* Floating point: scalar, vector, the mathematical library, and the old stack unit. */
#include <complex.h>
#include <math.h>

#include "work.h"

#define N 192

uint64_t work_matmul(long n)
{
	static double a[N][N], b[N][N], c[N][N];

	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = i * 3 + j;
			b[i][j] = i - 2 * j;
		}
	work_begin();
	for (long r = 0; r < n; r++)
		for (int i = 0; i < N; i++)
			for (int k = 0; k < N; k++)
				for (int j = 0; j < N; j++)
					c[i][j] += a[i][k] * b[k][j];
	work_end(n);
	return mix_bytes(0, c, sizeof(c));
}

uint64_t work_nbody(long n)
{
	double p[5][3], v[5][3], m[5];

	for (int i = 0; i < 5; i++) {
		m[i] = 1 + i % 2;
		for (int k = 0; k < 3; k++) {
			p[i][k] = (i * 7 + k * 3) % 11;
			v[i][k] = ((i + k) % 3 - 1) * 0.1;
		}
	}
	work_begin();
	for (long s = 0; s < n; s++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double d[3], r2 = 0.01;

				for (int k = 0; k < 3; k++) {
					d[k] = p[i][k] - p[j][k];
					r2 += d[k] * d[k];
				}
				r2 = 0.001 / (r2 * sqrt(r2));
				for (int k = 0; k < 3; k++) {
					v[i][k] -= d[k] * m[j] * r2;
					v[j][k] += d[k] * m[i] * r2;
				}
			}
		for (int i = 0; i < 5; i++)
			for (int k = 0; k < 3; k++)
				p[i][k] += 0.001 * v[i][k];
	}
	work_end(n);
	return mix_bytes(0, p, sizeof(p));
}

uint64_t work_mandelbrot(long n)
{
	uint64_t sum = 0;

	work_begin();
	for (long y = 0; y < n; y++)
		for (long x = 0; x < n; x++) {
			double cr = 3.0 * x / n - 2, ci = 2.0 * y / n - 1, r = 0, i = 0;
			int k;

			for (k = 0; k < 100 && r * r + i * i < 4; k++) {
				double t = r * r - i * i + cr;

				i = 2 * r * i + ci;
				r = t;
			}
			sum += k;
		}
	work_end(n);
	return sum;
}

static void fft(double complex *a, unsigned n)
{
	for (unsigned i = 1, j = 0; i < n; i++) {
		unsigned bit = n >> 1;

		for (; j & bit; bit >>= 1)
			j ^= bit;
		j ^= bit;
		if (i < j) {
			double complex t = a[i];

			a[i] = a[j];
			a[j] = t;
		}
	}
	for (unsigned len = 2; len <= n; len *= 2) {
		double complex w = cos(2 * 3.14159265358979323846 / len) + I * sin(2 * 3.14159265358979323846 / len);

		for (unsigned i = 0; i < n; i += len) {
			double complex x = 1;

			for (unsigned k = 0; k < len / 2; k++, x *= w) {
				double complex u = a[i + k], t = a[i + k + len / 2] * x;

				a[i + k] = u + t;
				a[i + k + len / 2] = u - t;
			}
		}
	}
}

#define FFT (1u << 14)

uint64_t work_fft(long n)
{
	static double complex a[FFT];

	for (unsigned i = 0; i < FFT; i++)
		a[i] = i * 7919 % 1009 - 500.0;
	work_begin();
	for (long r = 0; r < n; r++) {
		fft(a, FFT);
		for (unsigned i = 0; i < FFT; i++)
			a[i] /= 128;
	}
	work_end(n);
	return mix_bytes(0, a, sizeof(a));
}

uint64_t work_libm(long n)
{
	double x = 0.5, sum = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		x = fmod(x + 0.37, 3.0);
		sum += sin(x) * exp(-x) + log1p(x) + pow(x, 0.3) + atan2(x, 2);
	}
	work_end(n);
	return llround(sum / n * 1e6);
}

uint64_t work_x87(long n)
{
	volatile long double step = 1e-3L;
	long double x = 0, sum = 0;

	work_begin();
	for (long i = 0; i < n; i++) {
		x += step;
		sum += x * x / (1 + x) - sqrtl(x);
	}
	work_end(n);
	return llroundl(sum * 1000);
}

/* Single precision, in a shape that compilers make vectors of. */
uint64_t work_saxpy(long n)
{
	static float a[8192], b[8192];

	for (unsigned i = 0; i < 8192; i++)
		b[i] = i % 17;
	work_begin();
	for (long r = 0; r < n; r++)
		for (unsigned i = 0; i < 8192; i++)
			a[i] = a[i] * 0.5f + b[i];
	work_end(n);
	return mix_bytes(0, a, sizeof(a));
}
