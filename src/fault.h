/*-------------------------------------------------------------------------
 *
 * fault.h
 *	  Places where tests let things go wrong.
 *
 * They exist only where the build defines TIMPUSH_FAULTS (make FAULTS=1).
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_FAULT_H
#define TIMPUSH_FAULT_H

#ifdef TIMPUSH_FAULTS

/* Define timpush.fault_points; when the library is loaded. */
extern void fault_init(void);

/* What is set for the point happens: nothing, in most cases. */
extern void fault_point(const char *name, bool may_raise);

#define FAULT_POINT(name)			fault_point((name), true)

/* Where nothing may raise, "error" does nothing. */
#define FAULT_POINT_QUIET(name)		fault_point((name), false)

#else

#define fault_init()				((void) 0)
#define FAULT_POINT(name)			((void) 0)
#define FAULT_POINT_QUIET(name)		((void) 0)

#endif

#endif							/* TIMPUSH_FAULT_H */
