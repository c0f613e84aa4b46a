/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See env.h.
 */
#pragma once

#include <stdarg.h>

enum spdk_log_level { SPDK_LOG_ERROR, SPDK_LOG_WARN, SPDK_LOG_NOTICE, SPDK_LOG_INFO, SPDK_LOG_DEBUG };

typedef void (*fake_log_fn)(int level, const char *file, const int line, const char *func, const char *format, va_list args);
void spdk_log_open(fake_log_fn log);
