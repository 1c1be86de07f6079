# hearth_library(NAME name SRCS ... DEPS ...): a static library hearth_<name>, alias hearth::<name>.
# Without sources it is an interface library (headers only).
function(hearth_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  set(target hearth_${ARG_NAME})
  if(ARG_SRCS)
    add_library(${target} STATIC ${ARG_SRCS})
    target_link_libraries(${target} PRIVATE hearth_options PUBLIC ${ARG_DEPS})
    target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/generated)
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${ARG_DEPS})
    target_include_directories(${target} INTERFACE ${CMAKE_SOURCE_DIR})
  endif()
  add_library(hearth::${ARG_NAME} ALIAS ${target})
endfunction()

# hearth_binary(NAME file-name SRCS ... DEPS ...): an executable bin/<file-name>.
function(hearth_binary)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE hearth_options ${ARG_DEPS})
endfunction()

# hearth_test(NAME name SRCS ... DEPS ... LABELS unit|integration|e2e): a GoogleTest program, registered with CTest as one
# test a program.
function(hearth_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT BUILD_TESTING)
    return()
  endif()
  set(target test_${ARG_NAME})
  add_executable(${target} ${ARG_SRCS})
  target_link_libraries(${target} PRIVATE hearth_options ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_test(NAME ${ARG_NAME} COMMAND ${target} --gtest_brief=1)
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# hearth_fuzzer(NAME name SRCS ... DEPS ...): a libFuzzer program fuzz/<name>; its corpus lies in tests/fuzz/corpus/<name>.
function(hearth_fuzzer)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT HEARTH_FUZZ)
    return()
  endif()
  set(target fuzz_${ARG_NAME})
  add_executable(${target} ${ARG_SRCS})
  target_link_libraries(${target} PRIVATE hearth_options ${ARG_DEPS})
  target_link_options(${target} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()

# hearth_proto(NAME name PROTOS a.proto ...): the messages as hearth::<name>_messages (protobuf only) and, where services are
# built, the gRPC stubs with them as hearth::<name>.
function(hearth_proto)
  cmake_parse_arguments(ARG "" "NAME" "PROTOS" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/generated)
  foreach(proto ${ARG_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    set(protoc ${CMAKE_COMMAND} -E make_directory ${out} COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/proto)
    add_custom_command(
      OUTPUT ${out}/${stem}.pb.cc ${out}/${stem}.pb.h
      COMMAND ${protoc} --cpp_out=${out} ${proto}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${proto}
      COMMENT "Generating messages from ${proto}" VERBATIM)
    list(APPEND messages ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
    if(HEARTH_SERVICES)
      add_custom_command(
        OUTPUT ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h
        COMMAND ${protoc} --grpc_out=${out} --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${proto}
        DEPENDS ${CMAKE_SOURCE_DIR}/proto/${proto}
        COMMENT "Generating stubs from ${proto}" VERBATIM)
      list(APPEND stubs ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
    endif()
  endforeach()
  add_library(hearth_${ARG_NAME}_messages STATIC ${messages})
  target_include_directories(hearth_${ARG_NAME}_messages SYSTEM PUBLIC ${out})
  target_link_libraries(hearth_${ARG_NAME}_messages PRIVATE hearth_options_generated PUBLIC protobuf::libprotobuf)
  set_target_properties(hearth_${ARG_NAME}_messages PROPERTIES CXX_CLANG_TIDY "")  # not our code
  add_library(hearth::${ARG_NAME}_messages ALIAS hearth_${ARG_NAME}_messages)
  if(HEARTH_SERVICES)
    add_library(hearth_${ARG_NAME} STATIC ${stubs})
    target_link_libraries(hearth_${ARG_NAME} PRIVATE hearth_options_generated
                          PUBLIC hearth_${ARG_NAME}_messages gRPC::grpc++)
    set_target_properties(hearth_${ARG_NAME} PROPERTIES CXX_CLANG_TIDY "")
    add_library(hearth::${ARG_NAME} ALIAS hearth_${ARG_NAME})
  endif()
endfunction()
