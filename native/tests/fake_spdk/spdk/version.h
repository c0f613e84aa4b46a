/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See env.h.
 */
#pragma once

#define SPDK_VERSION_STRING "fake SPDK"
