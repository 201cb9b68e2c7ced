/*-------------------------------------------------------------------------
 *
 * palloc.h
 *	  A memory context for the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_UNIT_PALLOC_H
#define TIMPUSH_UNIT_PALLOC_H

#include <stddef.h>

extern void context_reset(void);
extern size_t context_in_use(void);
extern size_t context_peak(void);

#endif							/* TIMPUSH_UNIT_PALLOC_H */
