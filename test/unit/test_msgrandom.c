/*-------------------------------------------------------------------------
 *
 * test_msgrandom.c
 *	  The numbers of calls: none twice, none alike under two keys, and no
 *	  pattern that shows.
 *
 *-------------------------------------------------------------------------
 */
#include <math.h>
#include <stdlib.h>

#include "msgrandom.h"
#include "tap.h"

#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))

#define SAMPLE	(1 << 20)

static const uint64_t keys[] = {
	0, 1, 2, UINT64_MAX, UINT64_C(1) << 32, UINT64_C(1) << 63,
	UINT64_C(0x0123456789abcdef), UINT64_C(0xfedcba9876543210)
};

static uint64_t seed = 1;

/* The same numbers in every run (xorshift64*). */
static uint64_t
random_bits(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return seed * UINT64_C(2685821657736338717);
}

static int
count_bits(uint64_t x)
{
	int			n = 0;

	for (; x != 0; x &= x - 1)
		n++;
	return n;
}

static int
compare_numbers(const void *x, const void *y)
{
	uint32_t	a = *(const uint32_t *) x;
	uint32_t	b = *(const uint32_t *) y;

	return a < b ? -1 : a > b;
}

/* How many of the numbers stood there before.  Sorts them. */
static int
count_repeats(uint32_t *numbers, int n)
{
	int			repeats = 0;

	qsort(numbers, n, sizeof(*numbers), compare_numbers);
	for (int i = 1; i < n; i++)
		repeats += numbers[i] == numbers[i - 1];
	return repeats;
}

/* Is every number of so many bits given out just once? */
static bool
is_bijection(uint64_t key, int bits)
{
	uint32_t	size = UINT32_C(1) << bits;
	bool	   *seen = calloc(size, sizeof(*seen));
	bool		result = true;

	for (uint32_t i = 0; i < size && result; i++)
	{
		uint32_t	out = msgrandom_permute(key, i, bits);

		result = out < size && !seen[out];
		if (result)
			seen[out] = true;
	}
	free(seen);
	return result;
}

static void
check_full_periods(void)
{
	for (int bits = 2; bits <= 20; bits += 2)
	{
		int			nkeys = bits <= 12 ? 200 : bits <= 16 ? 20 : 0;
		int			bad = 0;

		for (size_t i = 0; i < lengthof(keys); i++)
			bad += !is_bijection(keys[i], bits);
		for (int i = 0; i < nkeys; i++)
			bad += !is_bijection(random_bits(), bits);
		ok(bad == 0, "%d bits: every number once, under %d keys", bits,
		   nkeys + (int) lengthof(keys));
	}
}

/* A million draws of 32 bits would meet by chance 128 times. */
static void
check_samples(void)
{
	uint32_t   *sample = malloc(SAMPLE * sizeof(*sample));
	int			repeats = 0;

	for (size_t k = 0; k < lengthof(keys); k++)
	{
		for (int i = 0; i < SAMPLE; i++)
			sample[i] = msgrandom(keys[k], (uint64_t) i + 1);
		repeats += count_repeats(sample, SAMPLE);
	}
	is_int(repeats, 0, "the first million calls: no number twice");

	/* over the end of the period */
	for (int i = 0; i < SAMPLE; i++)
		sample[i] = msgrandom(keys[6], UINT64_C(0xffffffff) - SAMPLE / 2 + i);
	is_int(count_repeats(sample, SAMPLE), 0,
		   "the million calls around the end of the period: no number twice");

	/* far apart, and such as differ in the upper or in the lower half only */
	for (int i = 0; i < SAMPLE; i++)
		sample[i] = msgrandom(keys[7], (uint64_t) i << 12);
	is_int(count_repeats(sample, SAMPLE), 0,
		   "a million calls 4096 apart: no number twice");
	for (int i = 0; i < SAMPLE; i++)
		sample[i] = msgrandom(keys[7], (uint64_t) i * UINT32_C(2654435761));
	is_int(count_repeats(sample, SAMPLE), 0,
		   "a million calls all over the period: no number twice");
	free(sample);
}

static void
check_period(void)
{
	int			bad = 0;

	for (int i = 0; i < 10000; i++)
	{
		uint64_t	key = random_bits();
		uint64_t	number = random_bits();

		bad += msgrandom(key, number) != msgrandom(key, (uint32_t) number);
		bad += msgrandom(key, number) !=
			msgrandom_permute(key, (uint32_t) number, 32);
	}
	is_int(bad, 0, "the period is 2^32 calls");
}

/* How many calls of the same number carry the same MsgRandom? */
static int
count_meetings(uint64_t a, uint64_t b)
{
	int			meetings = 0;

	for (uint64_t i = 0; i < 20000; i++)
		meetings += msgrandom(a, i) == msgrandom(b, i);
	return meetings;
}

/* Two databases of one app count alike and must not meet. */
static void
check_keys(void)
{
	uint32_t   *sample = malloc(SAMPLE * sizeof(*sample));
	int			worst = 0;
	int			alike = 0;

	for (int bit = 0; bit < 64; bit++)
	{
		int			meetings = count_meetings(keys[6],
											  keys[6] ^ (UINT64_C(1) << bit));

		worst = meetings > worst ? meetings : worst;
	}
	ok(worst <= 1, "keys one bit apart do not meet (%d)", worst);

	worst = 0;
	for (int i = 0; i < 64; i++)
	{
		int			meetings = count_meetings(i, i + 1);

		worst = meetings > worst ? meetings : worst;
	}
	ok(worst <= 1, "neighbouring keys do not meet (%d)", worst);

	/* nor is one the other, a few calls later */
	for (int shift = -1000; shift <= 1000; shift++)
	{
		for (int i = 2000; i < 2100; i++)
			alike += msgrandom(keys[6], i) == msgrandom(keys[7], i + shift);
	}
	ok(alike <= 1, "a key's sequence is not another's, shifted (%d)", alike);

	/* two halves of random draws would share 64 numbers */
	for (int i = 0; i < SAMPLE; i++)
		sample[i] = msgrandom(keys[i & 1], i / 2);
	alike = count_repeats(sample, SAMPLE);
	ok(alike > 20 && alike < 130,
	   "two keys share as many numbers as chance has it (%d)", alike);
	free(sample);
}

static void
check_differences(uint64_t key)
{
	uint32_t   *differences = malloc(SAMPLE * sizeof(*differences));
	uint32_t	last = msgrandom(key, 0);
	int			ascents = 0;
	int			small = 0;
	int			repeats;

	for (int i = 0; i < SAMPLE; i++)
	{
		uint32_t	next = msgrandom(key, (uint64_t) i + 1);

		ascents += next > last;
		differences[i] = next - last;
		/* one in 2^12 is so near to the one before */
		small += differences[i] < UINT32_C(1) << 19 ||
			-differences[i] < UINT32_C(1) << 19;
		last = next;
	}
	repeats = count_repeats(differences, SAMPLE);
	ok(abs(ascents - SAMPLE / 2) < SAMPLE / 200,
	   "key %016llx: up as often as down (%d)", (unsigned long long) key,
	   ascents);
	ok(abs(small - SAMPLE / 4096) < 100,
	   "key %016llx: neighbours are seldom near (%d)",
	   (unsigned long long) key, small);
	/* by chance 128 */
	ok(repeats < 300, "key %016llx: hardly a difference comes twice (%d)",
	   (unsigned long long) key, repeats);
	free(differences);
}

/* Each bit is set in half of the numbers, also together with each other. */
static void
check_bits(uint64_t key)
{
	static int	both[32][32];
	int			n = 1 << 16;
	double		worst = 0;
	double		worst_pair = 0;

	memset(both, 0, sizeof(both));
	for (int i = 0; i < n; i++)
	{
		uint32_t	out = msgrandom(key, i);

		for (int a = 0; a < 32; a++)
		{
			if ((out >> a & 1) == 0)
				continue;
			for (int b = 0; b <= a; b++)
				both[a][b] += out >> b & 1;
		}
	}
	for (int a = 0; a < 32; a++)
	{
		worst = fmax(worst, fabs((double) both[a][a] / n - 0.5));
		for (int b = 0; b < a; b++)
			worst_pair = fmax(worst_pair, fabs((double) both[a][b] / n - 0.25));
	}
	ok(worst < 0.01, "key %016llx: every bit is balanced (%.4f)",
	   (unsigned long long) key, worst);
	ok(worst_pair < 0.01, "key %016llx: every pair of bits is (%.4f)",
	   (unsigned long long) key, worst_pair);
}

/* Whatever bit of the number changes, half of the result's bits do. */
static void
check_avalanche(uint64_t key)
{
	double		least = 32;
	double		most = 0;

	for (int bit = 0; bit < 32; bit++)
	{
		int			n = 4096;
		int64_t		changed = 0;
		double		mean;

		for (int i = 0; i < n; i++)
		{
			uint32_t	number = (uint32_t) random_bits();

			changed += count_bits(msgrandom(key, number) ^
								  msgrandom(key, number ^ UINT32_C(1) << bit));
		}
		mean = (double) changed / n;
		least = fmin(least, mean);
		most = fmax(most, mean);
	}
	ok(least > 15.5 && most < 16.5,
	   "key %016llx: a changed bit changes half of them (%.2f to %.2f)",
	   (unsigned long long) key, least, most);
}

int
main(void)
{
	check_full_periods();
	check_samples();
	check_period();
	check_keys();
	check_differences(keys[0]);
	check_differences(keys[6]);
	for (size_t i = 0; i < lengthof(keys); i++)
	{
		check_bits(keys[i]);
		check_avalanche(keys[i]);
	}
	return done_testing();
}
