{{- /* The groups of workers, as a list in YAML: the ingress, each model, its expert pools. */ -}}
{{- define "pointsman.groups" -}}
{{- $config := .Values.config -}}
{{- $pods := .Values.pods -}}
{{- $where := $config.deployment -}}
{{- $slack := int64 $pods.graceSlackSeconds -}}
{{- $longest := include "pointsman.longest" . | int64 -}}
{{- $lameDuck := ceil $config.ingress.lame_duck_s | int64 -}}
{{- $start := 0 -}}
{{- range $config.models -}}
{{- $start = max $start (ceil .replicas.start_timeout_s | int64) -}}
{{- end -}}
- name: ingress
  resource: pointsman_ingress
  image: {{ $where.image | quote }}
  millicpus: {{ int64 $pods.ingressMillicpus }}
  memory: {{ add (int64 $pods.ingressBytes) (int64 $config.ingress.limits.body_bytes_at_once) }}
  gpus: 0
  min: {{ int64 $config.ingress.replicas }}
  max: {{ int64 $config.ingress.replicas }}
  grace: {{ add (int64 $pods.successorSeconds) $lameDuck $longest $slack }}
  start: {{ $start }}
  variables: {{ if $config.records.password_env }}[{{ $config.records.password_env | quote }}]{{ else }}[]{{ end }}
{{- range $name, $model := $config.models }}
{{- $replicas := $model.replicas }}
{{- $group := include "pointsman.modelGroup" $name }}
{{- $drain := max $longest (ceil $replicas.drain_timeout_s | int64) | add $lameDuck }}
{{- $key := dig "upstream" "api_key_env" "" $model }}
- name: {{ $group }}
  resource: {{ include "pointsman.resource" $group }}
  image: {{ ternary ($where.gpu_image | default $where.image) $where.image (gt (int64 $replicas.gpus) 0) | quote }}
  millicpus: {{ mulf $replicas.cpus 1000 | ceil | int64 }}
  memory: {{ int64 (required (printf "config.models.%s.replicas.memory_bytes is missing" $name) $replicas.memory_bytes) }}
  gpus: {{ int64 $replicas.gpus }}
  min: {{ int64 $replicas.min }}
  max: {{ int64 $replicas.max }}
  grace: {{ add $drain $slack }}
  start: {{ ceil $replicas.start_timeout_s | int64 }}
  variables: {{ if $key }}[{{ $key | quote }}]{{ else }}[]{{ end }}
{{- with $model.pools }}
{{- $group := include "pointsman.poolsGroup" $name }}
- name: {{ $group }}
  resource: {{ include "pointsman.resource" $group }}
  image: {{ $where.image | quote }}
  millicpus: {{ mulf .cpus 1000 | ceil | int64 }}
  memory: {{ div (add (int64 (required (printf "config.models.%s.pools.memory_bytes is missing" $name) .memory_bytes)) (int64 .count) -1) (int64 .count) }}
  gpus: 0
  min: {{ mul (int64 .count) (int64 .min) }}
  max: {{ mul (int64 .count) (int64 .max) }}
  grace: {{ add $drain $slack }}
  start: {{ ceil $replicas.start_timeout_s | int64 }}
  variables: []
{{- end }}
{{- end }}
{{- end }}
