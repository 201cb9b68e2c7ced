/*-------------------------------------------------------------------------
 *
 * msgrandom.h
 *	  MsgRandom: numbers that look random and do not repeat.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_MSGRANDOM_H
#define TIMPUSH_MSGRANDOM_H

#include <stdint.h>

/*
 * A bijection of 0..2^bits - 1 that depends on the key; "bits" is even, 2 to
 * 32.  Only tests use fewer than 32.
 */
extern uint32_t msgrandom_permute(uint64_t key, uint32_t number, int bits);

/* MsgRandom of a server's call with that number. */
extern uint32_t msgrandom(uint64_t key, uint64_t number);

#endif							/* TIMPUSH_MSGRANDOM_H */
