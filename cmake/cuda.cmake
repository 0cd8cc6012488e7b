# SPDX-License-Identifier: Apache-2.0
# Whether to build for CUDA: sets LIPSYNC_HAS_CUDA and LIPSYNC_ARCHITECTURES.
#
#   LIPSYNC_CUDA=auto (the default)  where an nvcc is found that can compile; else say why not
#   LIPSYNC_CUDA=on                  or stop
#   LIPSYNC_CUDA=off                 do not look
#   LIPSYNC_CUDA_ARCHITECTURES       as CMake's CUDA_ARCHITECTURES: "90" is the quick build for a
#                                    test machine
#
# Each is a CMake variable (-D…) or an environment variable, which goes before and is not kept, so
# that `LIPSYNC_CUDA=off pip install .` means this build alone.

set(LIPSYNC_CUDA auto CACHE STRING "Build for CUDA: auto, on or off")
set(LIPSYNC_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90" CACHE STRING
    "GPU architectures; the last one's PTX too, for GPUs yet to come")

set(LIPSYNC_NVCC_PATHS /usr/local/cuda CACHE STRING "Where to look for bin/nvcc beside PATH")
mark_as_advanced(LIPSYNC_NVCC_PATHS)

set(wanted "${LIPSYNC_CUDA}")
set(LIPSYNC_ARCHITECTURES "${LIPSYNC_CUDA_ARCHITECTURES}")
if(DEFINED ENV{LIPSYNC_CUDA} AND NOT "$ENV{LIPSYNC_CUDA}" STREQUAL "")
  set(wanted "$ENV{LIPSYNC_CUDA}")
endif()
if(DEFINED ENV{LIPSYNC_CUDA_ARCHITECTURES} AND NOT "$ENV{LIPSYNC_CUDA_ARCHITECTURES}" STREQUAL "")
  set(LIPSYNC_ARCHITECTURES "$ENV{LIPSYNC_CUDA_ARCHITECTURES}")
endif()
string(TOLOWER "${wanted}" wanted)
if(NOT wanted MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "LIPSYNC_CUDA is '${wanted}': expected auto, on or off")
endif()

set(LIPSYNC_HAS_CUDA OFF)
if(wanted STREQUAL "off")
  return()
endif()

# The compiler must be known to work before enable_language, which would stop where it does not.
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # it may have been installed since the last time
  if(NOT DEFINED ENV{CUDACXX})
    find_program(LIPSYNC_NVCC nvcc PATHS ENV CUDA_PATH ${LIPSYNC_NVCC_PATHS} PATH_SUFFIXES bin)
    if(LIPSYNC_NVCC)
      set(CMAKE_CUDA_COMPILER ${LIPSYNC_NVCC})
    endif()
  endif()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "${LIPSYNC_ARCHITECTURES}")
endif()
set(problem "")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(problem "no nvcc was found (in PATH, CUDA_PATH, LIPSYNC_NVCC_PATHS or by CUDACXX)")
else()
  include(CheckLanguage)
  set(nvcc "${CMAKE_CUDA_COMPILER}$ENV{CUDACXX}")
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(problem "${nvcc} cannot compile (see CMakeFiles/CMakeError.log in ${CMAKE_BINARY_DIR})")
  else()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
      set(problem "${nvcc} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}: C++20 needs CUDA 12")
    elseif(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # a CMake that does not know it can
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
  endif()
endif()

if(problem STREQUAL "")
  set(LIPSYNC_HAS_CUDA ON)
  message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${LIPSYNC_ARCHITECTURES}")
elseif(wanted STREQUAL "on")
  message(FATAL_ERROR "LIPSYNC_CUDA=on, but ${problem}")
else()
  message(STATUS "Without CUDA: ${problem}")
endif()
