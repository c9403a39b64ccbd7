/* SPDX-License-Identifier: MIT */
/* Hashing and ciphers: one in plain C, the others as libraries have them, picked for the CPU they find. */
#include <openssl/evp.h>
#include <string.h>
#include <zlib.h>

#include "work.h"

#define SIZE (64u << 10)

static unsigned char *noise(void)
{
	unsigned char *p = work_alloc(SIZE);
	uint64_t state = 1;

	for (size_t i = 0; i < SIZE; i += 8) {
		uint64_t x = rnd(&state);

		memcpy(p + i, &x, 8);
	}
	return p;
}

static uint32_t ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

/* The round constants: cube roots of the first 64 primes, by integer search. */
static void constants(uint32_t k[64])
{
	int n = 0;

	for (unsigned p = 2; n < 64; p++) {
		unsigned __int128 target = (unsigned __int128)p << 96, root = 0;
		int prime = 1;

		for (unsigned d = 2; d * d <= p; d++)
			prime &= p % d != 0;
		if (!prime)
			continue;
		for (int bit = 35; bit >= 0; bit--) {
			unsigned __int128 r = root | (unsigned __int128)1 << bit;

			if (r * r * r <= target)
				root = r;
		}
		k[n++] = root;
	}
}

static void compress_block(uint32_t h[8], const uint32_t k[64], const unsigned char *p)
{
	uint32_t w[64], v[8];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof(v));
	for (int i = 0; i < 64; i++) {
		uint32_t t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) +
			      ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
		uint32_t t2 = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) +
			      ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));

		memmove(v + 1, v, 7 * sizeof(v[0]));
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}

uint64_t work_sha256(long n)
{
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	unsigned char *p = noise();
	uint32_t k[64];

	constants(k);
	work_begin();
	for (long i = 0; i < n; i++)
		for (size_t at = 0; at < SIZE; at += 64)
			compress_block(h, k, p + at);
	work_end(n);
	return mix_bytes(0, h, sizeof(h));
}

uint64_t work_libcrypto_sha256(long n)
{
	unsigned char *p = noise(), out[32];
	unsigned len;

	EVP_Digest(p, SIZE, out, &len, EVP_sha256(), NULL); /* the library's own start */
	work_begin();
	for (long i = 0; i < n; i++) {
		if (EVP_Digest(p, SIZE, out, &len, EVP_sha256(), NULL) != 1)
			work_fail("digest");
		p[i % SIZE] ^= out[0];
	}
	work_end(n);
	return mix_bytes(0, out, sizeof(out));
}

uint64_t work_libcrypto_aes(long n)
{
	static const unsigned char key[32] = "a key of thirty-two bytes, so on", iv[16] = "and a start";
	EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	unsigned char *p = noise();
	int len;

	if (!c || EVP_EncryptInit_ex(c, EVP_aes_256_ctr(), NULL, key, iv) != 1)
		work_fail("cipher");
	work_begin();
	for (long i = 0; i < n; i++)
		if (EVP_EncryptUpdate(c, p, &len, p, SIZE) != 1)
			work_fail("cipher");
	work_end(n);
	return mix_bytes(0, p, SIZE);
}

uint64_t work_crc32(long n)
{
	unsigned char *p = noise();
	unsigned long crc = 0;

	work_begin();
	for (long i = 0; i < n; i++)
		crc = crc32(crc, p, SIZE);
	work_end(n);
	return crc;
}
