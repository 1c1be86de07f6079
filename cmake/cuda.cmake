# The CUDA backend's language, flags and library function. HEARTH_CUDA without an nvcc turns itself off and says so, so that
# one preset serves machines with and without the toolkit.
if(HEARTH_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(WARNING "HEARTH_CUDA is on, but there is no nvcc: the CUDA backend is left out")
    set(HEARTH_CUDA OFF)
  endif()
endif()
if(NOT HEARTH_CUDA)
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 86 89 90 120)
endif()
if(HEARTH_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${HEARTH_CCACHE})
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know that nvcc has had it since 12.0
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
find_package(CUDAToolkit REQUIRED)

add_library(hearth_cuda_options INTERFACE)
target_compile_options(hearth_cuda_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror>")

# hearth_cuda_library(NAME name SRCS a.cu b.cc ... DEPS ...): a static library of kernels and what launches them,
# hearth_<name>, alias hearth::<name>.
function(hearth_cuda_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  set(target hearth_${ARG_NAME})
  add_library(${target} STATIC ${ARG_SRCS})
  target_link_libraries(${target} PRIVATE hearth_options hearth_cuda_options PUBLIC ${ARG_DEPS} CUDA::cudart_static)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  add_library(hearth::${ARG_NAME} ALIAS ${target})
endfunction()
