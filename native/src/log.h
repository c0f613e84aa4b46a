/* SPDX-License-Identifier: BSD-3-Clause
 *
 * log.h: one line on stderr for each event, as text or as a JSON object; any thread.
 */
#pragma once

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR };

/* level: "debug", "info", "warning", "error", "off"; format: "console", "json". False when it is none of them. */
_Bool log_configure(const char *level, const char *format);

/* event: a dotted name, e.g. "queue.closed"; the text says what happened, for people. */
void log_event(enum log_level level, const char *event, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define log_debug(...) log_event(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_event(LOG_INFO, __VA_ARGS__)
#define log_warning(...) log_event(LOG_WARNING, __VA_ARGS__)
#define log_error(...) log_event(LOG_ERROR, __VA_ARGS__)
