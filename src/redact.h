/*-------------------------------------------------------------------------
 *
 * redact.h
 *	  Blanking out what a text from the network repeats of a UserSig.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_REDACT_H
#define TIMPUSH_REDACT_H

#include "response.h"

/*
 * Blank out whatever stands after "usersig=", and every word with a piece of
 * the UserSig, of 15 characters or more, in either case and with any of them
 * escaped as in a URL, however often.  Takes time in proportion to the text.
 */
extern void redact_usersig(char *text, const char *usersig);

/* The same for all texts of an outcome that are recorded. */
extern void redact_outcome(Outcome *outcome, const char *usersig);

#endif							/* TIMPUSH_REDACT_H */
