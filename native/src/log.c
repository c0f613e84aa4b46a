/* SPDX-License-Identifier: BSD-3-Clause */
#include "log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048

static const char *const level_names[] = {"debug", "info", "warning", "error", "off"};
static enum log_level threshold = LOG_INFO;
static bool as_json;

bool log_configure(const char *level, const char *format)
{
	for (unsigned i = 0; i < sizeof(level_names) / sizeof(*level_names); i++) {
		if (strcmp(level, level_names[i]) != 0)
			continue;
		threshold = (enum log_level)i;
		as_json = strcmp(format, "json") == 0;
		return as_json || strcmp(format, "console") == 0;
	}
	return false;
}

/* Appends text to a JSON string that is being written; what does not fit is left out. */
static size_t put_escaped(char *line, size_t at, size_t size, const char *text)
{
	for (const unsigned char *c = (const unsigned char *)text; *c && at + 8 < size; c++) {
		if (*c == '"' || *c == '\\') {
			line[at++] = '\\';
			line[at++] = (char)*c;
		} else if (*c < 0x20 || *c >= 0x7f) {
			at += (size_t)snprintf(line + at, size - at, "\\u%04x", *c);
		} else {
			line[at++] = (char)*c;
		}
	}
	return at;
}

static size_t format_line(char *line, size_t size, enum log_level level, const char *event, const char *text)
{
	struct timespec now;
	struct tm utc;
	char stamp[32];

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
	if (!as_json) {
		int n = snprintf(line, size - 1, "%s.%03ldZ [%s] %s %s", stamp, now.tv_nsec / 1000000,
				 level_names[level], event, text);
		size_t used = n < 0 ? 0 : (size_t)n < size - 1 ? (size_t)n : size - 2;

		for (size_t i = 0; i < used; i++)
			if ((unsigned char)line[i] < 0x20)
				line[i] = ' ';
		line[used] = '\n';
		return used + 1;
	}
	size_t at = (size_t)snprintf(line, size, "{\"timestamp\":\"%s.%03ldZ\",\"level\":\"%s\",\"event\":\"", stamp,
				     now.tv_nsec / 1000000, level_names[level]);
	at = put_escaped(line, at, size - 64, event);
	at += (size_t)snprintf(line + at, size - at, "\",\"text\":\"");
	at = put_escaped(line, at, size - 8, text);
	at += (size_t)snprintf(line + at, size - at, "\"}\n");
	return at;
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
	char text[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];
	va_list arguments;

	if (level < threshold)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* One write for a line: lines of several threads do not mix. A full or closed stderr loses it. */
	ssize_t written = write(STDERR_FILENO, line, format_line(line, sizeof(line), level, event, text));
	(void)written;
}
