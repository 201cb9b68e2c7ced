/*-------------------------------------------------------------------------
 *
 * msgrandom.c
 *	  MsgRandom: numbers that look random and do not repeat.
 *
 * The API drops a second call with the same MsgRandom within a second
 * (1047/67553), with all its pushes and without a trace.  Random draws would
 * collide sooner or later, a plain counter would be the same in two databases
 * of one app.  So the number of the call goes through a Feistel network,
 * which is a bijection whatever its round function, under a key that every
 * server object draws for itself.
 *
 * Crash story: no state.  Numbers come from a sequence and are not given out
 * twice.
 *
 *-------------------------------------------------------------------------
 */
#include "msgrandom.h"

#define ROUNDS	8

/* The finalizer of splitmix64: every bit of the input moves every bit. */
static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

uint32_t
msgrandom_permute(uint64_t key, uint32_t number, int bits)
{
	int			half = bits / 2;
	uint32_t	mask = (UINT32_C(1) << half) - 1;
	uint32_t	left = (number >> half) & mask;
	uint32_t	right = number & mask;

	for (int round = 0; round < ROUNDS; round++)
	{
		uint32_t	next = left ^
		((uint32_t) mix(mix(key + (uint64_t) round) ^ right) & mask);

		left = right;
		right = next;
	}
	return (left << half) | right;
}

uint32_t
msgrandom(uint64_t key, uint64_t number)
{
	return msgrandom_permute(key, (uint32_t) number, 32);
}
