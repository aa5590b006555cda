# compress_model(<name> MODEL m.onnx CALIBRATION c.npz EVALUATION e.npz METRIC top1
#                TARGETS onnxruntime [openvino …] [GATES "size_reduction>=60%" …] [ARGUMENTS …])
#
# Builds <name>/<target>/ in the binary folder, with reports and packages beside them. The build
# fails when a gate does. <name>_DIR is the folder.
find_program(COMPRESS_EXECUTABLE compress REQUIRED)

function(compress_model name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "MODEL;CALIBRATION;EVALUATION;METRIC" "TARGETS;GATES;ARGUMENTS")
  set(out "${CMAKE_CURRENT_BINARY_DIR}/${name}")
  set(flags --calibration ${arg_CALIBRATION} --evaluation ${arg_EVALUATION} --metric ${arg_METRIC})
  foreach(target IN LISTS arg_TARGETS)
    list(APPEND flags --target ${target})
  endforeach()
  foreach(gate IN LISTS arg_GATES)
    list(APPEND flags --gate ${gate})
  endforeach()
  add_custom_command(
    OUTPUT "${out}/run.json"
    COMMAND "${COMPRESS_EXECUTABLE}" run ${arg_MODEL} ${flags} ${arg_ARGUMENTS}
            -o "${out}" --depfile "${out}.d" --quiet
    DEPENDS ${arg_MODEL} ${arg_CALIBRATION} ${arg_EVALUATION}
    DEPFILE "${out}.d" # whatever else the run read: external data, a recipe's own modules
    COMMENT "Compressing ${name} for ${arg_TARGETS}"
    VERBATIM)
  add_custom_target(${name} ALL DEPENDS "${out}/run.json")
  set(${name}_DIR "${out}" PARENT_SCOPE)
endfunction()
