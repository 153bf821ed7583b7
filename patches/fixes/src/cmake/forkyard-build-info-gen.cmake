# Writes common/build-info.cpp from common/build-info.cpp.in, for trees that come without upstream's own generator
# (common/cmake/build-info-gen-cpp.cmake). Called by common/CMakeLists.txt in the root of the tree:
#
#     cmake -DMSVC=.. -DCMAKE_C_COMPILER=.. -DCMAKE_C_COMPILER_ID=.. -DCMAKE_C_COMPILER_VERSION=..
#           -DCMAKE_VS_PLATFORM_NAME=.. -P cmake/forkyard-build-info-gen.cmake
#
# The template needs BUILD_NUMBER, BUILD_COMMIT, BUILD_COMPILER and BUILD_TARGET. What cannot be found out is 0 or
# "unknown", never an error: none of it changes what the engine computes. The output is written only if it changes.

cmake_minimum_required(VERSION 3.14)

get_filename_component(common_dir "${CMAKE_CURRENT_LIST_DIR}/../common" ABSOLUTE)

# The first line a command prints, or the fallback if it fails or prints nothing.
function(first_line_of variable fallback)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_QUIET)
    string(REGEX REPLACE "\r?\n.*" "" text "${text}")
    string(STRIP "${text}" text)
    if (NOT status EQUAL 0 OR text STREQUAL "")
        set(text "${fallback}")
    endif()
    # the values end up in C string literals
    string(REPLACE "\\" "\\\\" text "${text}")
    string(REPLACE "\"" "\\\"" text "${text}")
    set(${variable} "${text}" PARENT_SCOPE)
endfunction()

# git by its name: whichever comes first on PATH answers
first_line_of(BUILD_COMMIT "unknown" git rev-parse --short HEAD)
first_line_of(BUILD_NUMBER "0" git rev-list --count HEAD)
if (NOT BUILD_NUMBER MATCHES "^[0-9]+$")
    set(BUILD_NUMBER 0)
endif()

set(BUILD_COMPILER "unknown")
set(BUILD_TARGET   "unknown")
if (CMAKE_C_COMPILER_ID)
    set(BUILD_COMPILER "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
endif()
if (MSVC)
    if (CMAKE_VS_PLATFORM_NAME)
        set(BUILD_TARGET "${CMAKE_VS_PLATFORM_NAME}")
    endif()
elseif (CMAKE_C_COMPILER)
    first_line_of(BUILD_COMPILER "${BUILD_COMPILER}" "${CMAKE_C_COMPILER}" --version)
    first_line_of(BUILD_TARGET   "${BUILD_TARGET}"   "${CMAKE_C_COMPILER}" -dumpmachine)
endif()

configure_file("${common_dir}/build-info.cpp.in" "${common_dir}/build-info.cpp" @ONLY)
